"""Words as text: CoNLL files, a word a line with its tag, and lists in one field of a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain

BLANKS = " \t\r\n"  # other white space may be part of a word
CONLL = (".conll", ".conllu", ".bio", ".iob")


class NotAWord(Exception):
    """A line that is not a word with its tag; the message begins with its number."""


def conll(lines: Iterable[str], universal: bool, tagged: bool = True) -> Iterator[tuple[int, list[str], list[str]]]:
    """Sentences: the number of the first line, words and tags. A word a line, an empty line after each sentence.

    In CoNLL-U (`universal`) the word is the second column and the tag UPOS, the fourth; ranges such as 1-2, empty nodes
    such as 1.1 and comments are left out. Elsewhere the word is the first column and the tag the last, between tabs or
    blanks; lines that begin with -DOCSTART- are left out, and so are comments before a sentence: lines that begin with
    # and have not as many columns as its words. Without `tagged` the tags need not be there.

    Raises NotAWord.
    """
    needed = (4 if tagged else 2) if universal else (2 if tagged else 1)
    word, tag = (1, 3) if universal else (0, -1)
    for rows in _sentences(lines, universal):
        for number, line, fields in rows:
            if len(fields) < needed:
                raise NotAWord(f"line {number}: {line!r:.80} is not a word{' with its tag' if tagged else ''}.")
        yield rows[0][0], [row[2][word] for row in rows], [row[2][tag] if tagged else "" for row in rows]


_Row = tuple[int, str, list[str]]
"""Number of a line, the line, its fields."""


def _sentences(lines: Iterable[str], universal: bool) -> Iterator[list[_Row]]:
    """The lines of each sentence that may be words."""
    rows: list[_Row] = []
    for number, line in enumerate(chain(lines, [""]), start=1):
        bare = line.strip(BLANKS)
        if bare:
            fields = bare.split("\t") if "\t" in bare else re.split(" +", bare)
            if bare.startswith("-DOCSTART-") or (universal and (bare.startswith("#") or not fields[0].isdigit())):
                if universal and not bare.startswith("#") and len(fields) < 2:
                    rows.append((number, bare, []))  # no word, and to be told
                continue
            rows.append((number, bare, fields))
            continue
        while rows and _is_comment(rows[0], rows[-1]):
            rows = rows[1:]
        if rows:
            yield rows
        rows = []


def _is_comment(row: _Row, last: _Row) -> bool:
    """Whether a line at the start of a sentence is a comment: a "#" that has other columns than words have."""
    _, _, fields = row
    return bool(fields) and fields[0].startswith("#") and (" " in fields[0] or len(fields) != len(last[2]))


def listed(field: str, numbers: bool = False) -> list[str]:
    """Words or tags of one field: a JSON list of strings, or what stands between blanks.

    With `numbers` (tags) also whole numbers in brackets, with commas or blanks between. Brackets alone are no words.

    Raises ValueError: a list, but not in JSON, such as Python prints one.
    """
    bare = field.strip()
    if not bare.startswith("["):
        return field.split()
    inner = bare[1:].lstrip()
    try:
        found = json.loads(bare)
    except ValueError:
        if inner.startswith('"') or (inner.startswith("'") and bare.endswith(("']", '"]'))):
            raise
        found = None
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return found
    if inner.startswith('"'):
        raise ValueError("it holds something else than strings")
    if numbers and bare.endswith("]"):
        parts = bare[1:-1].replace(",", " ").split()
        if all(part.removeprefix("-").isdecimal() for part in parts):
            return parts
    return field.split()
