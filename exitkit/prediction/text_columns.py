"""Which columns of a table, or keys of an object, hold the text and its pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from exitkit.data.columns import PAIRS, SINGLES, WORDS
from exitkit.data.fields import paths
from exitkit.errors import UsageError, one_of

KNOWN = ", ".join(chain.from_iterable(SINGLES))
Names = tuple[str, str | None]


@dataclass(frozen=True)
class Wanted:
    """What the caller asked for."""

    text: str | None
    pair: str | None
    expects_pair: bool
    keeps_words: bool = False
    trained_on: Names | None = None  # the columns of the training data

    def is_words(self, name: str) -> bool:
        """Whether strings in a column are words: in tagging where it is called so, or as in training."""
        as_trained = self.trained_on is not None and name == self.trained_on[0] != "text"
        return self.keeps_words and (as_trained or name.lower() in WORDS)


def choose(names: Sequence[str], wanted: Wanted) -> Names:
    """The columns (or keys) of the text and its pair.

    Those asked for, else those of the training data where they are here, else the only ones of a usual name; names
    rank as in training.
    """
    if wanted.text is not None:
        chosen: Names = wanted.text, wanted.pair
    elif wanted.trained_on is not None and all(name is None or paths(name, names) for name in wanted.trained_on):
        chosen = wanted.trained_on
    elif wanted.expects_pair:
        chosen = _only_pair(names)
    else:
        in_words = [name for name in names if wanted.is_words(name)]
        chosen = _only_single(in_words or names), None
    for column in chosen:
        if column is not None and not paths(column, names):
            raise UsageError(one_of("column", column, filter(None, names)))
        for name in () if column is None else [path[0] for path in paths(column, names)]:
            if names.count(name) > 1:
                raise UsageError(f"there are {names.count(name)} columns named '{name}'; rename one")
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
    ranks = ([name for usual in rank for name in dict.fromkeys(names) if name.lower() == usual] for rank in SINGLES)
    match next(filter(None, ranks), []):
        case [single]:
            return single
        case []:
            raise UsageError(f"no text; columns: {_listed(names)}. Known names: {KNOWN}. Give the text column")
        case several:
            raise UsageError(f"several columns may be the text: {', '.join(several)}; give the text column")


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    found = {name.lower(): name for name in names}
    return [(found[first], found[second]) for first, second in PAIRS if first in found and second in found]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(filter(None, names)) or "none"
