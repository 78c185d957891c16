"""Inputs of `predict` in tables: csv and tsv with a header, parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from exitkit.data import delimited, fields
from exitkit.data.flaws import WAY_OUT, Flaw, not_utf8
from exitkit.data.parquet import parquet
from exitkit.errors import UsageError
from exitkit.prediction.lines import BadLine, Line, Texts, outcome, text_of, text_or_words
from exitkit.prediction.text_columns import KNOWN, Names, Wanted, choose

BATCH = 1024  # rows of a parquet file that are held at a time


def table_rows(
    lines: Iterable[bytes], start: bytes, format: str, wanted: Wanted, quotes: bool
) -> Iterator[Line | BadLine]:
    """Rows of csv or tsv. Bytes that are not UTF-8 are carried through, so that a bad row ends where it ends."""
    decoded = (raw.decode(errors="surrogateescape") for raw in lines)
    with delimited.long_fields():
        table = delimited.table(decoded, start, format, quotes)
        parse = _parser(table.header, _header_columns(table.header, wanted), wanted)
        for number, row in table.rows:
            yield BadLine(number, str(row)) if isinstance(row, Flaw) else outcome(number, parse, row)


def _header_columns(header: Sequence[str], wanted: Wanted) -> Names:
    try:
        return choose(header, wanted)
    except UsageError as error:
        if len(header) > 1 or wanted.text is not None:
            raise
        raise UsageError(
            f"has one column, and its first line, '{header[0][:80]}', is not a name that is known for a text "
            f"({KNOWN}); add such a header, give the text column, or, if there is no header and "
            "each line is a text, rename the file to .txt or give --input-format lines"
        ) from error


def _parser(header: Sequence[str], columns: Names, wanted: Wanted) -> Callable[[list[str]], Texts]:
    text, pair = columns
    text_at = _positions(header, text)
    pair_at = [] if pair is None else _positions(header, pair)

    def parse(row: list[str]) -> Texts:
        if len(row) != len(header):
            raise Flaw(f"wrong number of fields: {len(row)}, where the header has {len(header)}")
        given = text_or_words(_field(row, text_at, text), text, wanted)
        return given, None if pair is None else _field(row, pair_at, pair)

    return parse


def _positions(header: Sequence[str], asked: str) -> list[int]:
    paths = fields.paths(asked, header)
    for path in paths:
        if len(path) > 1:
            raise UsageError(f"column '{path[0]}' holds text, so there is no '{path[1]}' inside it")
    return [header.index(path[0]) for path in paths]


def _field(row: Sequence[str], positions: Sequence[int], column: str) -> str:
    value = row[positions[0]] if len(positions) == 1 else fields.joined([row[at] for at in positions])
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            byte = ord(value[error.start]) - 0xDC00  # how surrogateescape writes a byte
            raise Flaw(not_utf8(byte, f" in '{column}'") + WAY_OUT) from None
    return value


def parquet_rows(path: Path, wanted: Wanted) -> Iterator[Line | BadLine]:
    """Rows of the columns that are wanted; the others are not read."""
    with parquet(path) as file:
        schema = file.schema_arrow
        asked = [column for column in choose(schema.names, wanted) if column is not None]
        places = [fields.paths(column, schema.names) for column in asked]
        for column, found in zip(asked, places, strict=True):
            for place in found:
                _check_holds_text(column, schema, place, wanted.keeps_words and len(found) == 1)
        roots = list(dict.fromkeys(place[0] for found in places for place in found))
        parse = partial(_parquet_texts, columns=asked, places=places, wanted=wanted)
        number = 0
        for batch in file.iter_batches(batch_size=BATCH, columns=roots):
            for row in _rows_of(batch):
                number += 1
                yield BadLine(number, str(row)) if isinstance(row, Flaw) else outcome(number, parse, row)


def _check_holds_text(column: str, schema: Any, place: fields.Path, keeps_words: bool) -> None:
    import pyarrow as pa

    from exitkit.data.column_types import field_type, holds_text, shown

    kind = field_type(schema.field(place[0]).type, place)
    if not (holds_text(kind) or (keeps_words and pa.types.is_list(kind) and holds_text(kind.value_type))):
        raise UsageError(f"column '{column}' holds {shown(kind)}, not text; give another column or write it as strings")


def _rows_of(batch: Any) -> Iterator[dict[str, object] | Flaw]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            yield _row_of(batch, at)


def _row_of(batch: Any, at: int) -> dict[str, object] | Flaw:
    row = {}
    for name in batch.schema.names:
        try:
            row[name] = batch.column(name)[at].as_py()
        except UnicodeDecodeError as error:
            return Flaw(not_utf8(error.object[error.start], f" in '{name}'"))
    return row


def _parquet_texts(
    row: dict[str, object], columns: Sequence[str], places: Sequence[Sequence[fields.Path]], wanted: Wanted
) -> Texts:
    values = [_text(fields.value(row, found), column) for found, column in zip(places, columns, strict=True)]
    pair = text_of(values[1], f"'{columns[1]}'") if len(values) == 2 else None
    return text_or_words(values[0], columns[0], wanted), pair


def _text(value: object, column: str) -> object:
    """A value; bytes, as some programs store texts, as text."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Flaw(not_utf8(value[error.start], f" in '{column}'")) from None
