"""Inputs of `predict` in tables: csv and tsv with a header, parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from exitkit.errors import ExitkitError, UsageError
from exitkit.prediction.lines import Bad, BadLine, Line, Texts, outcome, text_of, text_or_words
from exitkit.prediction.text_columns import KNOWN, Names, Wanted, choose

LONGEST_FIELD = 16 * 2**20  # characters of one csv field; Python's own limit, 128 Ki, is too short for documents
TAB = "\t"


def table(lines: Iterable[bytes], delimiter: str, wanted: Wanted, quotes: bool = True) -> Iterator[Line | BadLine]:
    """Bytes that are not UTF-8 are carried through the csv reader, so that a bad row ends where it ends."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    decoded = (raw.decode(errors="surrogateescape") for raw in lines)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    rows = csv.reader(decoded, delimiter=delimiter, strict=True, quoting=quoting)
    try:
        header = next((row for row in rows if row), None)
    except csv.Error as error:
        raise UsageError(f"the header cannot be read: {error}") from error
    if header is None:
        raise UsageError("is empty; the first line must name the columns")
    parse = partial(_table_texts, header=header, columns=_header_columns(header, wanted), wanted=wanted)
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if _swallows_rows(error):
                raise ExitkitError(
                    f"line {number}: a quote opened in this row is not closed ({error}), so the rows after "
                    "it cannot be told apart; double the quotes that are part of a text, or give jsonl"
                ) from error
            yield BadLine(number, f"not valid {'tsv' if delimiter == TAB else 'csv'}: {error}")
            continue
        if row:
            yield outcome(number, parse, row)


def has_stray_quotes(lines: Iterable[bytes]) -> bool:
    """Whether quotes in a tsv file are part of its texts: many such files, GLUE's among them, do not quote at all.

    They are when the file does not parse with quotes, or a quoted field swallows the end of a row.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    rows = csv.reader((raw.decode(errors="surrogateescape") for raw in lines), delimiter=TAB, strict=True)
    columns, before = 0, 0
    try:
        for row in rows:
            columns = columns or len(row)
            if len(row) != columns and rows.line_num > before + 1:
                return True
            before = rows.line_num
    except csv.Error:
        return True
    return False


def _swallows_rows(error: csv.Error) -> bool:
    """Whether the reader stopped inside a quoted field, perhaps many lines after its start."""
    return str(error).startswith(("unexpected end of data", "field larger than"))


def _header_columns(header: list[str], wanted: Wanted) -> Names:
    try:
        return choose(header, wanted)
    except UsageError as error:
        if len(header) > 1 or wanted.text is not None:
            raise
        raise UsageError(
            f"has one column, and its first line, '{header[0][:80]}', is not a name that is known for a text "
            f"({KNOWN}); add such a header, give the text column, or, if there is no header and "
            "each line is a text, rename the file to .txt"
        ) from error


def _table_texts(row: list[str], header: list[str], columns: Names, wanted: Wanted) -> Texts:
    if len(row) != len(header):
        raise Bad(f"wrong number of fields: {len(row)}, where the header has {len(header)}")
    if any("\0" in field for field in row):
        raise Bad("holds a NUL byte")
    text, pair = columns
    return text_or_words(_field(row, header, text), text, wanted), None if pair is None else _field(row, header, pair)


def _field(row: list[str], header: list[str], column: str) -> str:
    value = row[header.index(column)]
    try:
        value.encode()
    except UnicodeEncodeError as error:
        byte = ord(value[error.start]) - 0xDC00  # how surrogateescape writes a byte
        raise Bad(f"not UTF-8: byte 0x{byte:02x} in '{column}'") from None
    return value


def parquet(path: Path, wanted: Wanted) -> Iterator[Line | BadLine]:
    """Rows of the columns that are wanted; the others are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            columns = [column for column in choose(schema.names, wanted) if column is not None]
            for column in columns:
                _check_holds_text(column, schema.field(column).type, wanted.keeps_words)
            parse = partial(_parquet_texts, columns=columns, wanted=wanted)
            batches = file.iter_batches(batch_size=1024, columns=columns)
            rows = (zip(*(batch.column(column) for column in columns), strict=True) for batch in batches)
            for number, row in enumerate(chain.from_iterable(rows), 1):
                yield outcome(number, parse, row)
    except pa.ArrowException as error:
        raise ExitkitError(f"not readable as parquet: {error}") from error


def _check_holds_text(column: str, kind: Any, keeps_words: bool) -> None:
    from pyarrow import types

    if keeps_words and (types.is_list(kind) or types.is_large_list(kind)):
        kind = kind.value_type
    value = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(test(value) for test in tests):
        raise UsageError(f"column '{column}' holds {kind}, not text; give another column or write it as strings")


def _parquet_texts(row: tuple[Any, ...], columns: list[str], wanted: Wanted) -> Texts:
    values = [_value(cell, column) for cell, column in zip(row, columns, strict=True)]
    pair = text_of(values[1], f"'{columns[1]}'") if len(values) == 2 else None
    return text_or_words(values[0], columns[0], wanted), pair


def _value(cell: Any, column: str) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        raise Bad(f"not UTF-8: byte 0x{error.object[error.start]:02x} in '{column}'") from None
