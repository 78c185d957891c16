"""Reads the inputs of `predict` as a stream: one line at a time, never the whole file.

Formats by suffix: jsonl and ndjson, csv and tsv (with a header), parquet; anything else is plain text, one
input a line. All but parquet may be gzipped.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

from exitkit.data.conll import CONLL, WORD, NotAWord, conll
from exitkit.errors import ExitkitError, UsageError
from exitkit.prediction.lines import (
    Bad,
    BadLine,
    Line,
    Texts,
    decode,
    kind_of,
    outcome,
    text_of,
    text_or_words,
    words_of,
)
from exitkit.prediction.tables import TAB, has_stray_quotes, parquet, table
from exitkit.prediction.text_columns import Names, Wanted, choose

BOM = b"\xef\xbb\xbf"


def read(
    path: Path | Literal["-"],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    expects_pair: bool,
    keeps_words: bool = False,
    trained_on: Names | None = None,
    stdin: BinaryIO | None = None,
) -> Iterator[Line | BadLine]:
    """The inputs in `path`, or on stdin for `-`, in order.

    Stdin is plain text, unless its first byte that is not blank is `{`: then it is jsonl. Empty lines are
    empty texts in plain text, and skipped in jsonl and csv. Raises UsageError or ExitkitError for what
    concerns the whole file: a file is opened and its header checked before this returns; stdin is not touched
    before the first line is asked for. With `keeps_words` (tagging) lists of words stay lists, and CoNLL files are
    read; strings are split as in training in columns called tokens or words, or as the training data's. Columns that
    are not named are looked for under their names in the training data, `trained_on`, first.
    """
    wanted = Wanted(text_column, pair_column, expects_pair, keeps_words, trained_on)
    if pair_column is not None and not expects_pair:
        raise UsageError(f"pair column '{pair_column}' was given, but the model takes one text; leave it out")
    if expects_pair and (text_column is None) != (pair_column is None):
        raise UsageError("the model takes pairs of texts: give both the text column and the pair column, or neither")
    if str(path) == "-":
        return _named("stdin", _stdin(stdin or sys.stdin.buffer, wanted))
    lines = _named(str(path), _file(Path(path), wanted))
    first = next(lines, None)
    return lines if first is None else chain((first,), lines)


def _named(name: str, lines: Iterator[Line | BadLine]) -> Iterator[Line | BadLine]:
    """The same lines; errors that concern the whole file begin with its name."""
    try:
        yield from lines
    except ExitkitError as error:
        raise type(error)(f"{name}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ExitkitError(f"{name}: cannot be read: {error}") from error


def _stdin(stream: BinaryIO, wanted: Wanted) -> Iterator[Line | BadLine]:
    lines = _without_bom(stream)
    blank: list[bytes] = []
    for first in lines:
        if first.strip():
            form = _jsonl if first.lstrip().startswith(b"{") else _plain
            yield from form(chain(blank, (first,), lines), wanted)
            return
        blank.append(first)
    yield from _plain(blank, wanted)


def _file(path: Path, wanted: Wanted) -> Iterator[Line | BadLine]:
    _check_is_file(path)
    zipped = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if zipped else path).suffix.lower()
    if suffix == ".json":
        raise UsageError("a .json file is one document; give one object a line, in a file that ends in .jsonl")
    if suffix == ".parquet":
        if zipped:
            raise UsageError("a parquet file cannot be read through gzip; unpack it first")
        yield from parquet(path, wanted)
        return
    with gzip.open(path) if zipped else path.open("rb") as stream:
        lines = _without_bom(stream)
        match suffix:
            case ".jsonl" | ".ndjson":
                yield from _jsonl(lines, wanted)
            case ".csv":
                yield from table(lines, ",", wanted)
            case ".tsv":
                with gzip.open(path) if zipped else path.open("rb") as again:
                    quotes = not has_stray_quotes(_without_bom(again))
                yield from table(lines, TAB, wanted, quotes)
            case suffix if suffix in CONLL and wanted.keeps_words:
                yield from _conll(lines, suffix == ".conllu", wanted)
            case _:
                yield from _plain(lines, wanted)


def _conll(lines: Iterable[bytes], universal: bool, wanted: Wanted) -> Iterator[Line | BadLine]:
    try:
        for number, words, _ in conll((raw.decode() for raw in lines), universal, False, _numbered(wanted)):
            yield Line(number, words, None)
    except NotAWord as error:
        raise ExitkitError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ExitkitError(f"not UTF-8: byte 0x{error.object[error.start]:02x}") from None


def _numbered(wanted: Wanted) -> str | None:
    """The number of the words' column in a CoNLL file: as asked, else as in training; None for the usual one."""
    given = wanted.text
    if given is None and wanted.trained_on is not None and wanted.trained_on[0].isdecimal():
        given = wanted.trained_on[0]
    if given is None or given == WORD:
        return None
    if not given.isdecimal() or given == "0":
        raise UsageError(f"a CoNLL file has columns by number, such as --text-column 2; there is no '{given}'")
    return given


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


def _plain(lines: Iterable[bytes], wanted: Wanted) -> Iterator[Line | BadLine]:
    if wanted.expects_pair:
        raise UsageError(
            "plain text holds one text a line, but the model takes pairs; "
            'give jsonl, such as {"sentence1": "…", "sentence2": "…"}, or a csv or parquet file'
        )
    if wanted.text is not None:
        raise UsageError(f"plain text has no columns, so there is no '{wanted.text}'; leave the column out")
    for number, raw in enumerate(lines, 1):
        yield outcome(number, _plain_texts, raw)


def _plain_texts(raw: bytes) -> Texts:
    return decode(raw.removesuffix(b"\n").removesuffix(b"\r")), None


# JSON lines


def _jsonl(lines: Iterable[bytes], wanted: Wanted) -> Iterator[Line | BadLine]:
    parse = partial(_json_texts, wanted=wanted)
    for number, raw in enumerate(lines, 1):
        if raw.strip():
            yield outcome(number, parse, raw)


def _json_texts(raw: bytes, wanted: Wanted) -> Texts:
    match _json(raw):
        case dict() as row:
            try:
                text, pair = choose(list(row), wanted)
            except UsageError as error:
                raise Bad(str(error)) from None
            return text_or_words(row[text], text, wanted), None if pair is None else text_of(row[pair], f"'{pair}'")
        case str() as text:
            if wanted.expects_pair:
                raise Bad("one text, but the model takes pairs")
            return text_of(text, "the text"), None
        case list() as values if wanted.keeps_words:
            return words_of(values, "the sentence"), None
        case [first, second]:
            if not wanted.expects_pair:
                raise Bad("a pair of texts, but the model takes one text")
            return text_of(first, "the first text"), text_of(second, "the second text")
        case list() as values:
            raise Bad(f"an array of {len(values)}; a pair is an array of two strings")
        case other:
            raise Bad(f"{kind_of(other)}, not an object or a string")


def _json(raw: bytes) -> object:
    try:
        return json.loads(decode(raw.rstrip()))
    except json.JSONDecodeError as error:
        raise Bad(f"invalid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise Bad(f"invalid JSON: {error}") from None
