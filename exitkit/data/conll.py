"""Words as text: CoNLL files, a word a line with its tag, and lists in one field of a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, dropwhile, islice, zip_longest

BLANKS = " \t\r\n"  # other white space may be part of a word
CONLL = (".conll", ".conllu", ".bio", ".iob")
WORD, TAG = "tokens", "tags"
"""What the usual columns are called; any other goes by its number, from 1."""
LOOKED_AT = 100  # sentences whose first column is looked at before the first of them is answered


class NotAWord(Exception):
    """A line that is not a word with its tag, or a column that holds no words; the message says where."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line that may be a word."""

    number: int
    line: str
    fields: list[str]
    tabs: bool  # whether tabs part its fields, not blanks

    def field(self, column: int) -> str:
        """A field by its number, from 1, or from −1 backwards. Raises NotAWord: the line has not so many."""
        if abs(column) > len(self.fields):
            raise NotAWord(f"line {self.number}: {self.line!r:.80} has no column {column}.")
        return self.fields[column - 1 if column > 0 else column]

    def like(self, other: Row) -> bool:
        """Whether it has the columns of another."""
        return len(self.fields) == len(other.fields) and (self.tabs == other.tabs or len(self.fields) == 1)


def conll(
    lines: Iterable[str], universal: bool, tagged: bool = True, text: str | None = None
) -> Iterator[tuple[int, list[str], list[str]]]:
    """Sentences: the number of the first line, words and tags; see `sentences` for what is none.

    The words are in the column `text`, a number from 1; usually in the first, the tags in the last, and in CoNLL-U
    (`universal`) in the second, the tag UPOS in the fourth. Without `tagged` the tags need not be there.

    Raises NotAWord: also where the usual column of words has none.
    """
    word, tag = usual_columns(universal)
    needed = (4 if tagged else 2) if universal else (2 if tagged else 1)
    if text is not None:
        word, needed = int(text), 1
    found = sentences(lines, universal)
    begun: list[list[Row]] = []
    if text is None and not universal:
        begun, first_column = list(islice(found, LOOKED_AT)), FirstColumn()
        for rows in begun:
            first_column.add(rows)
        if why := first_column.why_not():
            raise NotAWord(why)
    for rows in chain(begun, found):
        check(rows, needed, tagged)
        yield rows[0].number, [row.field(word) for row in rows], [row.field(tag) if tagged else "" for row in rows]


def usual_columns(universal: bool) -> tuple[int, int]:
    """Where words and tags are where nobody says it, as `Row.field` counts."""
    return (2, 4) if universal else (1, -1)


def check(rows: Sequence[Row], needed: int, tagged: bool) -> None:
    """Raise NotAWord for a line with too few columns."""
    for row in rows:
        if len(row.fields) < needed:
            raise NotAWord(f"line {row.number}: {row.line!r:.80} is not a word{' with its tag' if tagged else ''}.")


class FirstColumn:
    """Whether the first column of some sentences may hold their words.

    It does not where it counts 1, 2, 3 in every sentence, or is one thing all through each of them, such as the name of
    the document.
    """

    def __init__(self) -> None:
        self.counts = self.is_one_thing = True
        self.words, self.fewest = 0, 0  # fields
        self.longest: list[Row] = []

    def add(self, rows: list[Row]) -> None:
        """One more sentence."""
        firsts = [row.fields[0] for row in rows]
        self.counts &= firsts in ([str(start + place) for place in range(len(rows))] for start in (0, 1))
        self.is_one_thing &= len(set(firsts)) == 1
        fewest = min(len(row.fields) for row in rows)
        self.fewest = min(self.fewest, fewest) if self.words else fewest
        self.words += len(rows)
        self.longest = max(self.longest, rows, key=len)

    def why_not(self) -> str | None:
        """Why it does not hold the words, and what to do; None where it may."""
        counts = self.counts and self.words > 2 and self.fewest > 1
        if len(self.longest) < 2 or not (counts or (self.is_one_thing and self.fewest > 2)):
            return None
        first = self.longest[0]
        what = "counts the words" if counts else f"holds '{first.fields[0]}' all through"
        shown = ", ".join(f"{number} '{field}'" for number, field in enumerate(first.fields[:12], start=1))
        return (
            f"line {first.number}: the first column {what}, here and in every sentence, so it is not the words. Say by "
            f"number where words and tags are, such as --text-column {self._likely()} --label-column "
            f"{len(first.fields)}; the columns are {shown:.300}. (--text-column 1 takes the first all the same.)"
        )

    def _likely(self) -> int:
        """The first column that holds neither numbers nor one thing."""
        for column in range(2, self.fewest + 1):
            fields = {row.field(column) for row in self.longest}
            if len(fields) > 1 and not all(map(str.isdecimal, fields)):
                return column
        return 2


@dataclass(frozen=True)
class Sentences:
    """A CoNLL file by its columns."""

    universal: bool
    lines: list[tuple[int, ...]]  # of the words of each sentence
    columns: list[list[tuple[str | None, ...]]]  # of each sentence; None where a line has no such column
    untagged: str | None  # the first line that is not a word with its tag, if any
    no_words: str | None  # why the usual column does not hold the words, if it does not

    @property
    def names(self) -> tuple[str, ...]:
        """Words and, if any has one, tags in their usual columns, and all columns by number."""
        most = max(map(len, self.columns), default=0)
        usual = (WORD,) if self.universal is False and most < 2 else (WORD, TAG)
        return (*usual, *map(str, range(1, most + 1)))

    def column(self, name: str) -> list[list[str]]:
        """A column, sentence by sentence.

        Raises NotAWord: a line does not have it, or the usual column of words holds none.
        """
        word, tag = usual_columns(self.universal)
        if name == WORD and self.no_words:
            raise NotAWord(self.no_words)
        if name == TAG and tag < 0:
            return [[_last(fields) for fields in zip(*one, strict=True)] for one in self.columns]
        number = {WORD: word, TAG: tag}.get(name) or int(name)
        return [self._fields(place, number) for place in range(len(self.columns))]

    def _fields(self, sentence: int, number: int) -> list[str]:
        columns = self.columns[sentence]
        fields = columns[number - 1] if number <= len(columns) else (None,)
        if None in fields:
            raise NotAWord(f"line {self.lines[sentence][fields.index(None)]} has no column {number}.")
        return [field for field in fields if field is not None]


def _last(fields: Sequence[str | None]) -> str:
    return next(field for field in reversed(fields) if field is not None)


def by_columns(lines: Iterable[str], universal: bool) -> Sentences:
    """Read a whole file. Words and tags repeat, so each is held once."""
    held: dict[str, str] = {}
    first_column = FirstColumn()
    untagged, numbers, columns = None, [], []
    for rows in sentences(lines, universal):
        try:
            check(rows, 4 if universal else 2, tagged=True)
        except NotAWord as error:
            untagged = untagged or str(error)
        if not universal:
            first_column.add(rows)
        fields = ([held.setdefault(field, field) for field in row.fields] for row in rows)
        columns.append(list(zip_longest(*fields)))
        numbers.append(tuple(row.number for row in rows))
    return Sentences(universal, numbers, columns, untagged, first_column.why_not())


def sentences(lines: Iterable[str], universal: bool) -> Iterator[list[Row]]:
    """The lines of each sentence. A word a line, an empty line after each sentence.

    In CoNLL-U (`universal`) ranges such as 1-2, empty nodes such as 1.1 and comments are left out. Elsewhere columns
    stand between tabs or blanks, and a word that is blank is one where tabs are between. Lines that begin with
    -DOCSTART- are left out, and so are comments: lines before a sentence that begin with # and have not the columns of
    its words, and lines on their own of which all begin with # and have not the columns of other sentences. (Between
    blanks `# O` has them if O is a tag there, and `# Licence` has not.)
    """
    if universal:
        yield from _blocks(lines, universal)
        return
    unsure: list[list[Row]] = []  # lines on their own that all begin with #, while nothing is known of other sentences
    last: Row | None = None
    tags = {"O"}
    for block in _blocks(lines, universal):
        rows = list(dropwhile(partial(_is_comment, last=block[-1]), block))
        if not all(row.fields[0].startswith("#") for row in rows):
            last = rows[-1]
            tags.update(row.fields[-1] for row in rows)
            yield from (held for held in unsure if _is_sentence(held, last, tags))
            unsure = []
            yield rows
        elif last is None:
            unsure.append(rows)
        elif _is_sentence(rows, last, tags):
            yield rows
    yield from filter(None, unsure)  # there is nothing else


def _is_sentence(rows: Sequence[Row], other: Row, tags: set[str]) -> bool:
    """Whether lines that all begin with # are words as those of another sentence are."""
    return bool(rows) and all(
        row.like(other) and " " not in row.fields[0] and (row.tabs or len(row.fields) == 1 or row.fields[-1] in tags)
        for row in rows
    )


def _is_comment(row: Row, last: Row) -> bool:
    """Whether a line at the start of a sentence is a comment: a "#" that has other columns than words have."""
    return row.fields[0].startswith("#") and (" " in row.fields[0] or not row.like(last))


def _blocks(lines: Iterable[str], universal: bool) -> Iterator[list[Row]]:
    """The lines between empty ones that may be words."""
    rows: list[Row] = []
    for number, line in enumerate(chain(lines, [""]), start=1):
        bare = line.strip(BLANKS)
        if bare:
            row = _row(number, line)
            if bare.startswith("-DOCSTART-") or (universal and (bare.startswith("#") or not row.fields[0].isdigit())):
                if universal and not bare.startswith("#") and len(row.fields) < 2:
                    rows.append(Row(number, bare, [], row.tabs))  # no word, and to be told
                continue
            rows.append(row)
        elif rows:
            yield rows
            rows = []


def _row(number: int, line: str) -> Row:
    """A line in its fields. The first may be blank where tabs are between; blanks around it are else no part of it."""
    filled = line.rstrip(BLANKS)
    if "\t" not in filled:
        bare = filled.strip(BLANKS)
        return Row(number, bare, re.split(" +", bare), tabs=False)
    fields = filled.split("\t")
    return Row(number, filled.strip(BLANKS), [fields[0].strip(" ") or fields[0], *fields[1:]], tabs=True)


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
