"""One split as a table, before its columns are chosen; and how one is read from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from exitkit.data import delimited, fields, json_rows
from exitkit.data.column_types import class_names, field_type, joined_type, numbers_as_texts, plain, shown
from exitkit.data.conll import TAG, NotAWord, by_columns
from exitkit.data.flaws import Flaw
from exitkit.data.formats import ALLOWED, Kind, check_readable, kind_of
from exitkit.data.opening import naming, opened, text_lines
from exitkit.data.parquet import parquet
from exitkit.errors import ExitkitError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset

BLOCK = 256  # rows of a file that are turned into columns at a time; more wake the garbage collector


@dataclass(frozen=True)
class Table:
    """Columns by name. A column is fetched when asked for: the ones that nobody reads cost nothing."""

    names: tuple[str, ...]
    rows: int
    fetch: Callable[[str], pa.ChunkedArray]  # one of `names`
    classes: Mapping[str, tuple[str, ...]]  # columns that hold class ids or lists of them, with the classes' names
    origin: str | None = None  # the file, for messages about one of several

    def known(self, asked: str | None) -> bool:
        """Whether a column, or what else `fields.paths` describes, is there."""
        return asked is not None and bool(fields.paths(asked, self.names))

    def column(self, asked: str) -> pa.ChunkedArray:
        """A column, a field inside one, or several joined; see `fields.paths`.

        Raises UsageError: it is not there, or is not text where texts are to be joined.
        """
        paths = fields.paths(asked, self.names)
        columns = [self._inside(path) for path in paths]
        if len(columns) == 1:
            return columns[0]
        for path, column in zip(paths, columns, strict=True):
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                raise UsageError(
                    f"column '{'.'.join(path)}' holds {shown(column.type)}; only texts can be joined ('{asked}')."
                )
        return _joined(columns)

    def _inside(self, path: fields.Path) -> pa.ChunkedArray:
        column = plain(self.fetch(path[0]))
        field_type(column.type, path)
        for step in path[1:]:
            column = plain(pc.struct_field(column, step))
        return column


def _joined(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """The texts of every row with blanks between, empty and missing ones left out; null where all are missing."""
    texts = [column.cast(pa.large_string()) for column in columns]
    lists = zip(*(column.to_pylist() for column in texts), strict=True)
    joined = [
        None if all(text is None for text in row) else fields.joined([text for text in row if text]) for row in lists
    ]
    return pa.chunked_array([pa.array(joined, pa.large_string())])


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
    """The table in a file of one of the formats in `FORMATS`.

    Raises ExitkitError: the file is empty, damaged or not what its name says; the message has the line where
    known.
    """
    with naming(str(path)):
        kind = check_is_table(path)
        if path.stat().st_size == 0:
            raise ExitkitError("is empty (0 bytes). Give a file with rows.")
        return replace(_READERS[str(kind.format)](path, kind), origin=str(path))


def check_is_table(path: Path) -> Kind:
    """What a file's name says it is. Raises UsageError: no table."""
    kind = kind_of(path)
    check_readable(path, kind)
    if kind.format is None:
        raise UsageError(f"cannot tell the format of {path.name}. Allowed: {ALLOWED}.")
    return kind


def from_columns(columns: Mapping[str, Any]) -> Table:
    """A table over sequences of equal length that lie in memory: lists, arrays, pandas Series."""
    rows = len(next(iter(columns.values()), ()))
    return Table(tuple(columns), rows, lambda name: _arrow(name, columns[name]), {})


def from_records(records: Sequence[Mapping[str, Any]]) -> Table:
    """A table over rows; a key that a row lacks is null there."""
    names = dict.fromkeys(name for record in records for name in record)
    return Table(tuple(names), len(records), lambda name: _arrow(name, [record.get(name) for record in records]), {})


def from_dataset(dataset: Dataset) -> Table:
    """A table over a `datasets.Dataset`, class names included."""

    def column(name: str) -> pa.ChunkedArray:
        return dataset.select_columns([name]).with_format("arrow")[:].column(name)

    kinds = {name: getattr(kind, "feature", kind) for name, kind in dataset.features.items()}  # of elements, in lists
    classes = {name: tuple(kind.names) for name, kind in kinds.items() if hasattr(kind, "names")}
    return Table(tuple(dataset.column_names), len(dataset), column, classes)


def concatenate(tables: Sequence[Table]) -> Table:
    """The rows of several tables, one after the other (the shards of a split).

    Types that differ are joined where that is sure; else reading the column raises ExitkitError, as it does for a
    column that one of the tables lacks.
    """
    if len(tables) == 1:
        return tables[0]
    names = dict.fromkeys(name for table in tables for name in table.names)
    classes: dict[str, tuple[str, ...]] = {}
    for table in tables:
        classes = {**table.classes, **classes}

    def fetch(name: str) -> pa.ChunkedArray:
        for table in tables:
            if name not in table.names:
                has = ", ".join(table.names)
                raise UsageError(f"{table.origin} has no column '{name}', which other shards have; it has {has:.300}.")
            if table.classes.get(name, classes.get(name)) != classes.get(name):
                raise ExitkitError(
                    f"{table.origin} names the classes of column '{name}' differently than the shards before it. Write "
                    "all shards with the same names."
                )
        return _chained(name, [plain(table.fetch(name)) for table in tables], tables)

    return Table(tuple(names), sum(table.rows for table in tables), fetch, classes)


def _chained(name: str, columns: Sequence[pa.ChunkedArray], tables: Sequence[Table]) -> pa.ChunkedArray:
    columns = numbers_as_texts(columns)
    kind = columns[0].type
    for column, table in zip(columns, tables, strict=True):
        wider = joined_type(kind, column.type)
        if wider is None:
            raise ExitkitError(
                f"{table.origin}: column '{name}' holds {shown(column.type)}, where {tables[0].origin} holds "
                f"{shown(kind)}. Write all shards with one type."
            )
        kind = wider
    return pa.chunked_array([chunk for column in columns for chunk in column.cast(kind).chunks], kind)


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


# Files


def _parquet(path: Path, kind: Kind) -> Table:
    def fetch(name: str) -> pa.ChunkedArray:
        with parquet(path) as file:
            return file.read(columns=[name]).column(name)

    with parquet(path) as file:
        schema = file.schema_arrow
        return Table(tuple(schema.names), file.metadata.num_rows, fetch, class_names(schema))


def _csv(path: Path, kind: Kind) -> Table:
    try:
        return _delimited(path, kind)
    except ExitkitError:
        if kind.format != "tsv":
            raise
        with opened(path, kind) as stream, delimited.long_fields():
            if not delimited.has_stray_quotes(stream):
                raise
        return _delimited(path, kind, quotes=False)


def _delimited(path: Path, kind: Kind, quotes: bool = True) -> Table:
    with opened(path, kind) as stream, delimited.long_fields():
        start = stream.peek(1)  # type: ignore[attr-defined]
        table = delimited.table(text_lines(stream), start, str(kind.format), quotes)
        header = table.header
        named = [name for name in header if name]  # sheets have columns without a name, and nothing in them
        if len(set(named)) < len(named):
            raise ExitkitError(f"the first line names a column twice: {', '.join(named)}. Rename one.")
        columns: list[list[str]] = [[] for _ in header]
        rows = _whole_rows(table)
        while block := list(islice(rows, BLOCK)):
            for column, values in zip(columns, zip(*block, strict=True), strict=True):
                column += values
    return from_columns({name: column for name, column in zip(header, columns, strict=True) if name})


def _whole_rows(table: delimited.Delimited) -> Iterator[list[str]]:
    width = len(table.header)
    for number, row in table.rows:
        if isinstance(row, Flaw):
            raise ExitkitError(f"line {number}: {row}. Double the quotes inside fields.")
        if len(row) != width:
            raise ExitkitError(
                f"line {number}: {len(row)} fields where the first line has {width} columns. Put quotes around "
                "fields that hold a delimiter or a line break."
            )
        yield row


def _json(path: Path, kind: Kind) -> Table:
    with opened(path, kind) as stream:
        in_one = json_rows.is_list(stream.peek(1), str(kind.format))  # type: ignore[attr-defined]
        return from_records(list(_listed(stream) if in_one else _lines(stream)))


def _listed(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    for row, record in enumerate(json_rows.elements(stream), start=1):
        if not isinstance(record, dict):
            raise ExitkitError(f'row {row}: {record!r:.80} is not an object such as {{"text": ...}}.')
        yield record


def _lines(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    first = True
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            record: Any = json_rows.parse(line)
        except Flaw as flaw:
            record = flaw
        if not isinstance(record, dict):
            why = f" ({record})" if isinstance(record, Flaw) else ""
            raise ExitkitError(
                f"line {number}: {line.strip()[:80].decode(errors='replace')!r} is not a JSON object{why}. "
                f"{json_rows.ONE_OBJECT}"
            )
        if first:
            json_rows.check_rows(record)
            first = False
        yield record


def _conll(path: Path, kind: Kind) -> Table:
    """The words of a CoNLL file and their tags, if any word has one, and its columns by number; see `conll`."""
    with opened(path, kind) as stream:
        found = by_columns(text_lines(stream), kind.format == "conllu")
    if found.untagged and TAG in found.names:
        raise ExitkitError(found.untagged)

    def fetch(name: str) -> pa.ChunkedArray:
        try:
            return _arrow(name, found.column(name))
        except NotAWord as error:
            raise ExitkitError(f"{path}: {error}") from None

    return Table(found.names, len(found.columns), fetch, {})


_READERS: Mapping[str, Callable[[Path, Kind], Table]] = {
    "parquet": _parquet,
    "csv": _csv,
    "tsv": _csv,
    "json": _json,
    "jsonl": _json,
    "conll": _conll,
    "conllu": _conll,
}
