"""Reads the inputs of `predict` as a stream: one row at a time, never the whole file.

Formats and how they are opened are those of training (`exitkit.data.formats`); a file of any other name is plain text,
one input a line.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

from exitkit.configuration.notation import InputFormat
from exitkit.data import json_rows
from exitkit.data.conll import WORD, NotAWord, conll
from exitkit.data.delimited import has_stray_quotes, long_fields
from exitkit.data.flaws import decode
from exitkit.data.formats import Kind, check_readable, kind_of
from exitkit.data.opening import check_text, checked, naming, opened
from exitkit.errors import ExitkitError, UsageError
from exitkit.prediction.lines import BadLine, Line, Texts, outcome
from exitkit.prediction.objects import Objects
from exitkit.prediction.stdin import format_of
from exitkit.prediction.tables import parquet_rows, table_rows
from exitkit.prediction.text_columns import Names, Wanted

Lines = Iterator[Line | BadLine]


def read(
    path: Path | Literal["-"],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    expects_pair: bool,
    keeps_words: bool = False,
    trained_on: Names | None = None,
    input_format: InputFormat = "auto",
    stdin: BinaryIO | None = None,
) -> Lines:
    """The inputs in `path`, or on stdin for `-`, in order.

    What format stdin has is seen from its first line that is not blank, unless `input_format` says it: see `format_of`.
    Empty lines are empty texts in plain text, and skipped in jsonl and csv. Raises UsageError or ExitkitError for what
    concerns the whole file: a file is opened and its header checked before this returns; stdin is not touched
    before the first line is asked for. With `keeps_words` (tagging) lists of words stay lists, and strings are split as
    in training in columns called tokens or words, or as the training data's. Columns that are not named are looked for
    under their names in the training data, `trained_on`, first.
    """
    wanted = Wanted(text_column, pair_column, expects_pair, keeps_words, trained_on)
    if pair_column is not None and not expects_pair:
        raise UsageError(f"pair column '{pair_column}' was given, but the model takes one text; leave it out")
    if expects_pair and (text_column is None) != (pair_column is None):
        raise UsageError("the model takes pairs of texts: give both the text column and the pair column, or neither")
    if str(path) == "-":
        return _named("stdin", _stdin(stdin or sys.stdin.buffer, wanted, input_format))
    lines = _named(str(path), _file(Path(path), wanted, input_format))
    first = next(lines, None)
    return lines if first is None else chain((first,), lines)


def _named(name: str, lines: Lines) -> Lines:
    """The same lines; errors that concern the whole file begin with its name."""
    with naming(name):
        yield from lines


def _stdin(stream: BinaryIO, wanted: Wanted, asked: InputFormat) -> Lines:
    if asked == "parquet":
        raise UsageError("parquet cannot be read as a stream; write it to a file")
    piece = stream.read1 if isinstance(stream, io.BufferedIOBase) else stream.read
    content = checked(piece, whole_blocks=False, in_lines=asked != "json")
    if asked == "json":
        yield from _listed(content, wanted)
        return
    begun = _first_lines(content)
    format = format_of(begun[-1], wanted) if asked == "auto" and begun else asked
    yield from _rows(chain(begun, content), begun[-1] if begun else b"", format, wanted)


def _first_lines(content: BinaryIO) -> list[bytes]:
    """Lines up to the first that is not blank."""
    lines = []
    for line in content:
        lines.append(line)
        if line.strip():
            break
    return lines


def _file(path: Path, wanted: Wanted, asked: InputFormat) -> Lines:
    _check_is_file(path)
    kind = kind_of(path)
    if asked != "auto":
        kind = kind._replace(format=None if asked == "lines" else asked)
    if asked != "lines":
        check_readable(path, kind)
    if kind.format == "parquet":
        yield from parquet_rows(path, wanted)
        return
    with opened(path, kind) as stream:
        start: bytes = stream.peek(1)  # type: ignore[attr-defined]
        if kind.format is None:
            check_text(start)
        if kind.format in ("json", "jsonl") and json_rows.is_list(start, kind.format):
            yield from _listed(stream, wanted)
        else:
            yield from _rows(stream, start, kind.format or "lines", wanted, _quotes(path, kind))


def _quotes(path: Path, kind: Kind) -> bool:
    """Whether quotes are quotes and, in a tsv file, no part of its texts. A pipe, which is read once, is not asked."""
    if kind.format != "tsv" or not path.is_file():
        return True
    with opened(path, kind) as stream, long_fields():
        return not has_stray_quotes(stream)


def _rows(lines: Iterable[bytes], start: bytes, format: str, wanted: Wanted, quotes: bool = True) -> Lines:
    """The rows of lines that begin with `start`."""
    match format:
        case "csv" | "tsv":
            return table_rows(lines, start, format, wanted, quotes)
        case "conll" | "conllu":
            return _conll(lines, format == "conllu", wanted)
        case "json" | "jsonl":
            return _jsonl(lines, wanted)
        case _:
            return _plain(lines, wanted)


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


# Plain text


def _plain(lines: Iterable[bytes], wanted: Wanted) -> Lines:
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


# JSON


def _jsonl(lines: Iterable[bytes], wanted: Wanted) -> Lines:
    parse = Objects(wanted)
    for number, raw in enumerate(lines, 1):
        if raw.strip():
            yield outcome(number, parse.line, raw)


def _listed(stream: BinaryIO, wanted: Wanted) -> Lines:
    """A file that is one list of rows, which are counted instead of lines: all may stand in one."""
    parse = Objects(wanted)
    for number, value in enumerate(json_rows.elements(stream), 1):
        yield outcome(number, parse.value, value)


# CoNLL


def _conll(lines: Iterable[bytes], universal: bool, wanted: Wanted) -> Lines:
    if wanted.expects_pair:
        raise UsageError("a CoNLL file holds one sentence a row, but the model takes pairs")
    try:
        for number, words, _ in conll((raw.decode() for raw in lines), universal, False, _numbered(wanted)):
            yield Line(number, words if wanted.keeps_words else " ".join(words), None)
    except NotAWord as error:
        raise ExitkitError(str(error)) from None
