"""Which columns of a table, or keys of an object, hold the text and its pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exitkit.data.columns import WORDS
from exitkit.errors import UsageError, one_of

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
Names = tuple[str, str | None]


@dataclass(frozen=True)
class Wanted:
    """What the caller asked for."""

    text: str | None
    pair: str | None
    expects_pair: bool
    keeps_words: bool = False
    in_words: frozenset[Any] = frozenset()  # columns whose strings are words


def choose(names: Sequence[str], wanted: Wanted) -> Names:
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
