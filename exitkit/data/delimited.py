"""Rows of csv and tsv files: what stands between the fields, whether quotes are quotes, and each row with its line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal

from exitkit.data.flaws import Flaw
from exitkit.data.opening import LONGEST_LINE, text_lines
from exitkit.errors import ExitkitError, UsageError

TAB = "\t"
DELIMITERS = {",": "commas", ";": "semicolons", TAB: "tabs", "|": "pipes"}
USUAL = {"csv": ",", "tsv": TAB}
LOOKED_AT = 100  # lines, to find the delimiter
EXCEL = re.compile(rb"\s*\"?sep=(.)\"?\r?\n", re.IGNORECASE)
"""A first line that only Excel knows, and that says what stands between fields."""


@dataclass(frozen=True)
class Delimited:
    """A table that has been begun: its header has been read, the rows come when asked for.

    Bytes that are not UTF-8 may be carried through as surrogates, so that a bad row ends where it ends.
    """

    header: tuple[str, ...]
    rows: Iterator[tuple[int, list[str] | Flaw]]  # the line on which each row starts, from 1; blank lines are no rows


def table(lines: Iterator[str], start: bytes, format: str, quotes: bool = True) -> Delimited:
    """Begin to read the lines of a csv or tsv file; `start` is what it begins with, as much as is known.

    The delimiter is the format's own wherever the header has it; else see `find_delimiter`. Fields may be longer than
    the csv module allows by default only within `long_fields`.

    Raises UsageError: no header, or one that can be read in several ways.
    """
    before = 0
    if excel := EXCEL.match(start):
        next(lines)
        before, delimiter = 1, excel[1].decode("latin-1")
    else:
        delimiter = find_delimiter(start, USUAL[format])
    reader = _reader(lines, delimiter, quotes)
    try:
        header = next((row for row in reader if row), None)
    except csv.Error as error:
        raise UsageError(f"the header cannot be read: {error}") from error
    if header is None:
        raise UsageError("is empty; the first line must name the columns")
    return Delimited(tuple(header), _rows(reader, delimiter, before))


def _reader(lines: Iterable[str], delimiter: str, quotes: bool = True) -> csv._reader:  # type: ignore[name-defined]
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)


def _rows(reader: csv._reader, delimiter: str, before: int) -> Iterator[tuple[int, list[str] | Flaw]]:  # type: ignore[name-defined]
    number = before + reader.line_num + 1
    while True:
        try:
            for row in reader:
                if row:
                    yield number, row
                number = before + reader.line_num + 1
            return
        except csv.Error as error:
            if _swallows_rows(error):
                raise ExitkitError(
                    f"line {number}: a quote opened in this row is not closed ({error}), so the rows after "
                    "it cannot be told apart; double the quotes that are part of a text, or give jsonl"
                ) from error
            yield number, Flaw(f"not valid {'tsv' if delimiter == TAB else 'csv'}: {error}")
            number = before + reader.line_num + 1


def _swallows_rows(error: csv.Error) -> bool:
    """Whether the reader stopped inside a quoted field, perhaps many lines after its start."""
    return str(error).startswith(("unexpected end of data", "field larger than"))


def has_stray_quotes(stream: BinaryIO) -> bool:
    """Whether quotes in a tsv file are part of its texts: many such files, GLUE's among them, do not quote at all.

    They are when the file does not parse with quotes, when a quoted field swallows the end of a row, or when a row has
    the header's columns only without quotes.
    """
    last = ""

    def lines() -> Iterator[str]:
        nonlocal last
        for last in text_lines(stream, "surrogateescape"):  # noqa: UP028  # `last` is read below
            yield last

    reader = _reader(lines(), TAB)
    columns, before = 0, 0
    try:
        for row in reader:
            columns = columns or len(row)
            if row and len(row) != columns:
                in_one_line = reader.line_num == before + 1
                if not in_one_line or len(last.rstrip("\r\n").split(TAB)) == columns:
                    return True
            before = reader.line_num
    except csv.Error:
        return True
    return False


@contextmanager
def long_fields() -> Iterator[None]:
    """Fields may be as long as a line, more than the 131,072 characters that the csv module allows by default."""
    before = csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    try:
        yield
    finally:
        csv.field_size_limit(before)


# What stands between fields


def find_delimiter(start: bytes, usual: str) -> str:
    """What stands between the fields of a file that begins like this.

    `usual` wherever it stands in the header. Else what stands there and makes as many fields of every row as of the
    header. A delimiter that is found in no row below is part of the name of a single column.

    Raises UsageError: the rows do not agree on one; the message names what may be meant.
    """
    lines = list(io.StringIO(start.decode("utf-8", errors="replace"), newline="\n"))
    if len(lines) > 1 and not lines[-1].endswith("\n"):
        lines.pop()  # cut, perhaps
    found = {delimiter: _widths(lines[:LOOKED_AT], delimiter) for delimiter in {usual, *DELIMITERS}}
    if found[usual] and found[usual][0] > 1:
        return usual
    splits = {delimiter: widths for delimiter, widths in found.items() if widths and max(widths[1:] or widths) > 1}
    several = {delimiter: widths for delimiter, widths in splits.items() if widths[0] > 1}
    agreed = [delimiter for delimiter, widths in several.items() if len(set(widths)) == 1]
    if len(agreed) == 1:
        return agreed[0]
    if not several:
        return usual
    names = " or ".join(sorted(f"{DELIMITERS[one]} ('{one}')" for one in agreed or several))
    raise UsageError(
        f"the columns of the first line, {lines[0].strip()[:80]!r}, seem to be separated by {names}, but the delimiter "
        f"of the rows below is not clear. Write {DELIMITERS[usual]} between fields, or quotes around a first line that "
        "names one column."
    )


def _widths(lines: Sequence[str], delimiter: str) -> list[int]:
    """Fields of each row, the header first; a row that cannot be read has none, and empty if that is the header."""
    widths: list[int] = []
    try:
        widths += (len(row) for row in _reader(lines, delimiter) if row)
    except csv.Error as error:
        if widths and not _swallows_rows(error):
            widths.append(0)
    return widths


def header_fields(line: str, delimiter: str) -> list[str]:
    """The fields of one line; none where it cannot be read."""
    try:
        return next(_reader([line], delimiter), [])
    except csv.Error:
        return []
