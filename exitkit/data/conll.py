"""Words as text: CoNLL files, a word a line with its tag, and lists in one field of a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

CONLL = (".conll", ".conllu", ".bio", ".iob")


class NotAWord(Exception):
    """A line that is not a word with its tag; the message begins with its number."""


def conll(lines: Iterable[str], universal: bool, tagged: bool = True) -> Iterator[tuple[int, list[str], list[str]]]:
    """Sentences: the number of the first line, words and tags. A word a line, an empty line after each sentence.

    In CoNLL-U (`universal`) the word is the second column and the tag UPOS, the fourth; ranges such as 1-2, empty nodes
    such as 1.1 and comments are left out. Elsewhere the word is the first column and the tag the last, between tabs or
    blanks, and lines that begin with -DOCSTART- are left out. Without `tagged` the tags need not be there.

    Raises NotAWord.
    """
    needed = (4 if tagged else 2) if universal else (2 if tagged else 1)
    first, words, tags = 0, list[str](), list[str]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            if words:
                yield first, words, tags
            words, tags = [], []
            continue
        if line.startswith("-DOCSTART-") or (universal and line.startswith("#")):
            continue
        fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if len(fields) < needed:
            raise NotAWord(f"line {number}: {line.strip()!r:.80} is not a word{' with its tag' if tagged else ''}.")
        if universal and not fields[0].isdigit():
            continue
        first = number if not words else first
        words.append(fields[1] if universal else fields[0])
        tags.append((fields[3] if universal else fields[-1]) if tagged else "")
    if words:
        yield first, words, tags


def listed(field: str, numbers: bool = False) -> list[str]:
    """Words or tags of one field: a JSON list of strings, or what stands between blanks.

    With `numbers` (tags) also whole numbers in brackets, with commas or blanks between. Brackets alone are no words.

    Raises ValueError: a list, but not in JSON, such as Python prints one.
    """
    bare = field.strip()
    if bare.startswith('["') or (bare.startswith("['") and bare.endswith(("']", '"]'))):
        found = json.loads(bare)
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise ValueError("it holds something else than strings")
        return found
    if bare == "[]":
        return []
    if numbers and bare.startswith("[") and bare.endswith("]"):
        parts = bare[1:-1].replace(",", " ").split()
        if all(part.removeprefix("-").isdecimal() for part in parts):
            return parts
    return field.split()
