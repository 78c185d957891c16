"""Reads the inputs of `predict` as a stream: one line at a time, never the whole file.

Formats by suffix: jsonl and ndjson, csv and tsv (with a header), parquet; anything else is plain text, one
input a line. All but parquet may be gzipped.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from exitkit.data.columns import WORDS
from exitkit.data.conll import CONLL, NotAWord, conll, listed
from exitkit.errors import ExitkitError, UsageError, one_of

SINGLES = ("text", "sentence", "question", "review", "content", "tokens", "words")
PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "context"),
    ("question", "passage"),
    ("question", "answer"),
    ("text", "text_pair"),
    ("text1", "text2"),
)
LONGEST_FIELD = 16 * 2**20  # characters of one csv field; Python's own limit, 128 Ki, is too short for documents
TAB = "\t"
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One input to answer.

    `number` counts from 1, empty lines included: the physical line (of a csv row, the one it starts on), or
    the row in parquet. `text_pair` is None exactly when the model takes one text.
    """

    number: int
    text: str | list[str]  # a list holds words, where these are to be answered
    text_pair: str | None

    @property
    def input(self) -> str | list[str] | tuple[str, str]:
        """What is answered."""
        if self.text_pair is None:
            return self.text
        assert isinstance(self.text, str)
        return self.text, self.text_pair


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be answered; those after it still can. `number` as in `Line`."""

    number: int
    reason: str


def read(
    path: Path | Literal["-"],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    expects_pair: bool,
    keeps_words: bool = False,
    words_column: str | None = None,
    stdin: BinaryIO | None = None,
) -> Iterator[Line | BadLine]:
    """The inputs in `path`, or on stdin for `-`, in order.

    Stdin is plain text, unless its first byte that is not blank is `{`: then it is jsonl. Empty lines are
    empty texts in plain text, and skipped in jsonl and csv. Raises UsageError or ExitkitError for what
    concerns the whole file: a file is opened and its header checked before this returns; stdin is not touched
    before the first line is asked for. With `keeps_words` (tagging) lists of words stay lists, and CoNLL files are
    read; strings are split as in training in columns called `words_column`, tokens or words.
    """
    names = frozenset({words_column, *WORDS} - {None} if keeps_words else ())
    wanted = _Wanted(text_column, pair_column, expects_pair, keeps_words, names)
    if pair_column is not None and not expects_pair:
        raise UsageError(f"pair column '{pair_column}' was given, but the model takes one text; leave it out")
    if expects_pair and (text_column is None) != (pair_column is None):
        raise UsageError("the model takes pairs of texts: give both the text column and the pair column, or neither")
    if str(path) == "-":
        return _named("stdin", _stdin(stdin or sys.stdin.buffer, wanted))
    lines = _named(str(path), _file(Path(path), wanted))
    first = next(lines, None)
    return lines if first is None else chain((first,), lines)


@dataclass(frozen=True)
class _Wanted:
    """What the caller asked for."""

    text: str | None
    pair: str | None
    expects_pair: bool
    keeps_words: bool = False
    in_words: frozenset[Any] = frozenset()  # columns whose strings are words


T = TypeVar("T")
Texts = tuple[str | list[str], str | None]
Names = tuple[str, str | None]


class _Bad(Exception):
    """Why one line cannot be answered."""


def _outcome(number: int, parse: Callable[[T], Texts], given: T) -> Line | BadLine:
    try:
        return Line(number, *parse(given))
    except _Bad as bad:
        return BadLine(number, str(bad))


def _named(name: str, lines: Iterator[Line | BadLine]) -> Iterator[Line | BadLine]:
    """The same lines; errors that concern the whole file begin with its name."""
    try:
        yield from lines
    except ExitkitError as error:
        raise type(error)(f"{name}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ExitkitError(f"{name}: cannot be read: {error}") from error


def _stdin(stream: BinaryIO, wanted: _Wanted) -> Iterator[Line | BadLine]:
    lines = _without_bom(stream)
    blank: list[bytes] = []
    for first in lines:
        if first.strip():
            form = _jsonl if first.lstrip().startswith(b"{") else _plain
            yield from form(chain(blank, (first,), lines), wanted)
            return
        blank.append(first)
    yield from _plain(blank, wanted)


def _file(path: Path, wanted: _Wanted) -> Iterator[Line | BadLine]:
    _check_is_file(path)
    zipped = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if zipped else path).suffix.lower()
    if suffix == ".json":
        raise UsageError("a .json file is one document; give one object a line, in a file that ends in .jsonl")
    if suffix == ".parquet":
        if zipped:
            raise UsageError("a parquet file cannot be read through gzip; unpack it first")
        yield from _parquet(path, wanted)
        return
    with gzip.open(path) if zipped else path.open("rb") as stream:
        lines = _without_bom(stream)
        match suffix:
            case ".jsonl" | ".ndjson":
                yield from _jsonl(lines, wanted)
            case ".csv":
                yield from _table(lines, ",", wanted)
            case ".tsv":
                with gzip.open(path) if zipped else path.open("rb") as again:
                    quotes = not _has_stray_quotes(_without_bom(again))
                yield from _table(lines, TAB, wanted, quotes)
            case suffix if suffix in CONLL and wanted.keeps_words:
                yield from _conll(lines, suffix == ".conllu")
            case _:
                yield from _plain(lines, wanted)


def _conll(lines: Iterable[bytes], universal: bool) -> Iterator[Line | BadLine]:
    try:
        for number, words, _ in conll((raw.decode() for raw in lines), universal, tagged=False):
            yield Line(number, words, None)
    except NotAWord as error:
        raise ExitkitError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ExitkitError(f"not UTF-8: byte 0x{error.object[error.start]:02x}") from None


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError("is a folder; give a file")
    if not path.parent.is_dir():
        raise UsageError(f"no such file: there is no folder '{path.parent}'")
    if not path.exists():
        close = get_close_matches(path.name, [sibling.name for sibling in path.parent.iterdir()], n=1)
        raise UsageError("no such file." + (f" Did you mean '{path.with_name(close[0])}'?" if close else ""))


def _without_bom(stream: Iterable[bytes]) -> Iterator[bytes]:
    lines = iter(stream)
    for first in lines:
        yield first.removeprefix(BOM)
        yield from lines


# Plain text


def _plain(lines: Iterable[bytes], wanted: _Wanted) -> Iterator[Line | BadLine]:
    if wanted.expects_pair:
        raise UsageError(
            "plain text holds one text a line, but the model takes pairs; "
            'give jsonl, such as {"sentence1": "…", "sentence2": "…"}, or a csv or parquet file'
        )
    if wanted.text is not None:
        raise UsageError(f"plain text has no columns, so there is no '{wanted.text}'; leave the column out")
    for number, raw in enumerate(lines, 1):
        yield _outcome(number, _plain_texts, raw)


def _plain_texts(raw: bytes) -> Texts:
    return _decode(raw.removesuffix(b"\n").removesuffix(b"\r")), None


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        at = error.start
        raise _Bad(f"not UTF-8: byte 0x{raw[at]:02x}, number {at + 1} of the line") from None


# JSON lines


def _jsonl(lines: Iterable[bytes], wanted: _Wanted) -> Iterator[Line | BadLine]:
    parse = partial(_json_texts, wanted=wanted)
    for number, raw in enumerate(lines, 1):
        if raw.strip():
            yield _outcome(number, parse, raw)


def _json_texts(raw: bytes, wanted: _Wanted) -> Texts:
    match _json(raw):
        case dict() as row:
            try:
                text, pair = _choose(list(row), wanted)
            except UsageError as error:
                raise _Bad(str(error)) from None
            if text in wanted.in_words and isinstance(row[text], str):
                return _split(row[text], text), None
            return _words(row[text], f"'{text}'", wanted.keeps_words), None if pair is None else _string(
                row[pair], f"'{pair}'"
            )
        case str() as text:
            if wanted.expects_pair:
                raise _Bad("one text, but the model takes pairs")
            return _string(text, "the text"), None
        case list() as values if wanted.keeps_words:
            return _words(values, "the sentence", True), None
        case [first, second]:
            if not wanted.expects_pair:
                raise _Bad("a pair of texts, but the model takes one text")
            return _string(first, "the first text"), _string(second, "the second text")
        case list() as values:
            raise _Bad(f"an array of {len(values)}; a pair is an array of two strings")
        case other:
            raise _Bad(f"{_kind(other)}, not an object or a string")


def _json(raw: bytes) -> object:
    try:
        return json.loads(_decode(raw.rstrip()))
    except json.JSONDecodeError as error:
        raise _Bad(f"invalid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise _Bad(f"invalid JSON: {error}") from None


def _words(value: object, name: str, kept: bool) -> str | list[str]:
    """A text, or its words: in a list where these are to be answered, else with blanks between."""
    if kept and isinstance(value, list):
        return [_string(word, f"word {number} of {name}") for number, word in enumerate(value, 1)]
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    return _string(value, name)


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _Bad(f"{name} is {_kind(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Bad(f"{name} holds half a surrogate pair, \\u{ord(value[error.start]):04x}") from None
    return value


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"


# Tables


def _table(lines: Iterable[bytes], delimiter: str, wanted: _Wanted, quotes: bool = True) -> Iterator[Line | BadLine]:
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
    parse = partial(_table_texts, header=header, columns=_header_columns(header, wanted), in_words=wanted.in_words)
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
            yield _outcome(number, parse, row)


def _has_stray_quotes(lines: Iterable[bytes]) -> bool:
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


def _header_columns(header: list[str], wanted: _Wanted) -> Names:
    try:
        return _choose(header, wanted)
    except UsageError as error:
        if len(header) > 1 or wanted.text is not None:
            raise
        raise UsageError(
            f"has one column, and its first line, '{header[0][:80]}', is not a name that is known for a text "
            f"({', '.join(SINGLES)}); add such a header, give the text column, or, if there is no header and "
            "each line is a text, rename the file to .txt"
        ) from error


def _table_texts(row: list[str], header: list[str], columns: Names, in_words: frozenset[Any]) -> Texts:
    if len(row) != len(header):
        raise _Bad(f"wrong number of fields: {len(row)}, where the header has {len(header)}")
    if any("\0" in field for field in row):
        raise _Bad("holds a NUL byte")
    text, pair = columns
    if text in in_words:
        return _split(_field(row, header, text), text), None
    return _field(row, header, text), None if pair is None else _field(row, header, pair)


def _split(field: str, column: str) -> list[str]:
    """The words of a field: a JSON list, or between blanks."""
    try:
        return listed(field)
    except ValueError as error:
        raise _Bad(f'\'{column}\' is not a list of words ({error}); write lists as JSON, such as ["a", "b"]') from None


def _field(row: list[str], header: list[str], column: str) -> str:
    value = row[header.index(column)]
    try:
        value.encode()
    except UnicodeEncodeError as error:
        byte = ord(value[error.start]) - 0xDC00  # how surrogateescape writes a byte
        raise _Bad(f"not UTF-8: byte 0x{byte:02x} in '{column}'") from None
    return value


def _parquet(path: Path, wanted: _Wanted) -> Iterator[Line | BadLine]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            columns = [column for column in _choose(schema.names, wanted) if column is not None]
            for column in columns:
                _check_holds_text(column, schema.field(column).type, wanted.keeps_words)
            parse = partial(_parquet_texts, columns=columns, wanted=wanted)
            batches = file.iter_batches(batch_size=1024, columns=columns)
            rows = (zip(*(batch.column(column) for column in columns), strict=True) for batch in batches)
            for number, row in enumerate(chain.from_iterable(rows), 1):
                yield _outcome(number, parse, row)
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


def _parquet_texts(row: tuple[Any, ...], columns: list[str], wanted: _Wanted) -> Texts:
    if wanted.keeps_words:
        value = row[0].as_py()
        if columns[0] in wanted.in_words and isinstance(value, str):
            return _split(value, columns[0]), None
        return _words(value, f"'{columns[0]}'", True), None
    texts = [_cell(cell, column) for cell, column in zip(row, columns, strict=True)]
    return texts[0], texts[1] if len(texts) == 2 else None


def _cell(cell: Any, column: str) -> str:
    try:
        return _string(cell.as_py(), f"'{column}'")
    except UnicodeDecodeError as error:
        raise _Bad(f"not UTF-8: byte 0x{error.object[error.start]:02x} in '{column}'") from None


# Columns


def _choose(names: Sequence[str], wanted: _Wanted) -> Names:
    """The columns (or keys) of the text and its pair: those asked for, else the only ones of a usual name."""
    if wanted.text is not None:
        chosen: Names = wanted.text, wanted.pair
    elif wanted.expects_pair:
        chosen = _only_pair(names)
    else:
        in_words = [name for name in names if name in wanted.in_words or name.lower() in WORDS]
        chosen = _only_single(in_words if wanted.keeps_words and in_words else names), None
    for column in chosen:
        if column is not None and column not in names:
            raise UsageError(one_of("column", column, names))
        if column is not None and names.count(column) > 1:
            raise UsageError(f"there are {names.count(column)} columns named '{column}'; rename one")
    return chosen


def _only_pair(names: Sequence[str]) -> tuple[str, str]:
    match _pairs(names):
        case [pair]:
            return pair
        case []:
            raise UsageError(
                f"no pair of texts, but the model takes pairs; columns: {_listed(names)}. "
                f"Known pairs: {', '.join(map('/'.join, PAIRS))}. Give the text column and the pair column"
            )
        case several:
            pairs = ", ".join(map("/".join, several))
            raise UsageError(f"several pairs of texts: {pairs}; give the text column and the pair column")


def _only_single(names: Sequence[str]) -> str:
    if pairs := _pairs(names):
        raise UsageError(
            f"a pair of texts ({'/'.join(pairs[0])}), but the model takes one text; "
            "give the text column (--text-column)"
        )
    match [name for usual in SINGLES for name in dict.fromkeys(names) if name.lower() == usual]:
        case [single]:
            return single
        case []:
            raise UsageError(
                f"no text; columns: {_listed(names)}. Known names: {', '.join(SINGLES)}. Give the text column"
            )
        case several:
            raise UsageError(f"several columns may be the text: {', '.join(several)}; give the text column")


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    found = {name.lower(): name for name in names}
    return [(found[first], found[second]) for first, second in PAIRS if first in found and second in found]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
