"""One split as a table, before its columns are chosen; and the file formats that one can be read from."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features

from exitkit.data.conll import CONLL, NotAWord, by_columns
from exitkit.errors import ExitkitError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json", *CONLL)


@dataclass(frozen=True)
class Table:
    """Columns by name. A column is fetched when asked for: the ones that nobody reads cost nothing."""

    names: tuple[str, ...]
    rows: int
    column: Callable[[str], pa.ChunkedArray]
    classes: Mapping[str, tuple[str, ...]]  # columns that hold class ids or lists of them, with the classes' names


class Piece(NamedTuple):
    """Consecutive rows of one split."""

    table: Table
    start: int
    stop: int
    origin: str  # for messages

    def row(self, position: int) -> str:
        """The place of the row at `position` of the piece, for messages; people count from 1."""
        return f"row {self.start + position + 1} of {self.origin}"


def read_table(path: Path) -> Table:
    """The table in a file of one of `SUFFIXES`.

    Raises ExitkitError: the file is empty, damaged or not what its name says; the message has the line where
    known.
    """
    if path.stat().st_size == 0:
        raise ExitkitError(f"{path} is empty (0 bytes). Give a file with rows.")
    if path.suffix == ".parquet":
        return _parquet(path)
    with _told_encoding(path):
        if path.suffix in CONLL:
            return _conll(path)
        return from_columns(_csv(path)) if path.suffix in (".csv", ".tsv") else from_records(_json(path))


def from_columns(columns: Mapping[str, Any]) -> Table:
    """A table over sequences of equal length that lie in memory: lists, arrays, pandas Series."""
    rows = len(next(iter(columns.values()), ()))
    return Table(tuple(columns), rows, lambda name: _arrow(name, columns[name]), {})


def from_records(records: Sequence[Mapping[str, Any]]) -> Table:
    """A table over rows; a key that a row lacks is null there."""
    names = dict.fromkeys(name for record in records for name in record)
    return from_columns({name: [record.get(name) for record in records] for name in names})


def from_dataset(dataset: Dataset) -> Table:
    """A table over a `datasets.Dataset`, class names included."""

    def column(name: str) -> pa.ChunkedArray:
        return dataset.select_columns([name]).with_format("arrow")[:].column(name)

    return Table(tuple(dataset.column_names), len(dataset), column, _classes(dataset.features))


def concatenate(tables: Sequence[Table]) -> Table:
    """The rows of several tables with the same columns, one after the other (the shards of a split)."""

    def column(name: str) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for table in tables for chunk in table.column(name).chunks])

    return Table(tables[0].names, sum(table.rows for table in tables), column, tables[0].classes)


def _arrow(name: str, values: Any) -> pa.ChunkedArray:
    try:
        array = pa.array(values, from_pandas=True)  # from_pandas: NaN counts as missing
    except UnicodeEncodeError as error:
        raise ExitkitError(f"column '{name}' holds text that is not valid Unicode: {error}. Clean it.") from error
    except (pa.ArrowException, OverflowError) as error:
        raise ExitkitError(f"column '{name}' cannot be read: {_mixture(values) or error}.") from error
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _mixture(values: Sequence[Any]) -> str | None:
    """What is wrong with a column of several types: the first row that differs from the rows before it."""
    first: type | None = None
    for row, value in enumerate(values, start=1):
        first = first or (type(value) if value is not None else None)
        if first and value is not None and type(value) is not first:
            return f"it mixes {first.__name__} and {type(value).__name__} (row {row}: {value!r}); use one type"
    return None


def _classes(features: Features) -> dict[str, tuple[str, ...]]:
    kinds = {name: getattr(kind, "feature", kind) for name, kind in features.items()}  # of the elements, in lists
    return {name: tuple(kind.names) for name, kind in kinds.items() if isinstance(kind, ClassLabel)}


def _parquet(path: Path) -> Table:
    def fail(error: Exception) -> NoReturn:
        raise ExitkitError(
            f"{path} cannot be read as Parquet: {error}. It is damaged or not a Parquet file; write it again."
        ) from error

    def column(name: str) -> pa.ChunkedArray:
        try:
            return pq.ParquetFile(path).read(columns=[name]).column(name)
        except (pa.ArrowException, OSError) as error:
            fail(error)

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        fail(error)
    schema = file.schema_arrow
    # Files written by datasets carry its features, class names among them, in the schema's metadata.
    known = b"huggingface" in (schema.metadata or {})
    classes = _classes(Features.from_arrow_schema(schema)) if known else {}
    return Table(tuple(schema.names), file.metadata.num_rows, column, classes)


@contextmanager
def _told_encoding(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        start = path.open("rb").read(2)
        encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "windows-1252"
        raise ExitkitError(
            f"{path} is not UTF-8 ({error.reason}); it looks like {encoding}. "
            f"Convert it: iconv -f {encoding} -t utf-8 {path.name} > NEW_FILE"
        ) from error


def _open(path: Path) -> TextIO:
    # newline="": the csv module and JSON each know their own line ends. -sig: spreadsheets write a
    # byte-order mark.
    return path.open(encoding="utf-8-sig", newline="")


class _BadQuoting(ExitkitError):
    """The file does not parse under the usual rules for quotes."""


def _csv(path: Path) -> dict[str, list[str]]:
    if path.suffix == ".csv":
        return _delimited(path, ",", csv.QUOTE_MINIMAL)
    try:
        return _delimited(path, "\t", csv.QUOTE_MINIMAL)
    except _BadQuoting as error:
        # Many tsv files, GLUE's among them, do not quote at all and have quotation marks inside texts.
        try:
            return _delimited(path, "\t", csv.QUOTE_NONE)
        except _BadQuoting:
            raise error from None


def _delimited(path: Path, delimiter: str, quoting: Literal[0, 3]) -> dict[str, list[str]]:
    with _open(path) as file, _long_fields():
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ExitkitError(f"{path}: the first line names a column twice: {', '.join(header)}. Rename one.")
            columns: list[list[str]] = [[] for _ in header]
            for row in reader:
                if row and len(row) != len(header):
                    raise _BadQuoting(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the first line has "
                        f"{len(header)} columns. Put quotes around fields that hold a delimiter or a line "
                        "break."
                    )
                for column, value in zip(columns, row, strict=False):  # a blank line is no row
                    column.append(value)
        except csv.Error as error:
            raise _BadQuoting(f"{path}, line {reader.line_num}: {error}. Double the quotes inside fields.") from error
    return dict(zip(header, columns, strict=True))


def _conll(path: Path) -> Table:
    """The words of a CoNLL file and their tags, if any word has one, and its columns by number; see `conll`."""
    with _open(path) as file:
        found = by_columns(file, path.suffix == ".conllu")
    if found.untagged and "tags" in found.names:
        raise ExitkitError(f"{path}, {found.untagged}")

    def column(name: str) -> pa.ChunkedArray:
        try:
            return _arrow(name, found.column(name))
        except NotAWord as error:
            raise ExitkitError(f"{path}, {error}") from None

    return Table(found.names, len(found.columns), column, {})


@contextmanager
def _long_fields() -> Iterator[None]:
    """Texts may be longer than the 131,072 characters that the csv module allows by default."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json(path: Path) -> list[dict[str, Any]]:
    with _open(path) as file:
        start = file.read(1024).lstrip()
        file.seek(0)
        return _json_list(path, file) if start.startswith("[") else _json_lines(path, file)


def _json_list(path: Path, file: TextIO) -> list[dict[str, Any]]:
    try:
        records = json.load(file)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ExitkitError(f"{path} is not valid JSON: {error}.") from error
    for row, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ExitkitError(f'{path}, row {row}: {record!r:.80} is not an object such as {{"text": ...}}.')
    return list(records)


def _json_lines(path: Path, file: TextIO) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            record = error
        if not isinstance(record, dict):
            raise ExitkitError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not a JSON object. Write one object per "
                "line, or the whole file as one list of objects."
            )
        records.append(record)
    return records
