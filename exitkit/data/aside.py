"""Rows to set aside so that they are a sample of all, though no text of theirs is among the others.

Copies of a text cannot be parted, so texts are drawn, not rows. A draw of texts alone would be luck: where a few
texts make up half of the rows, one more or less of them moves everything. So rows are counted, label by label and from
the most frequent texts to those that stand there once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

Ints = npt.NDArray[np.int64]

SLACK = 0.05
"""Share of the rows wanted of a label by which texts that are taken whole may miss what is owed."""
NEARLY = 4
"""A text that stands there a fourth as often as another is nearly as frequent."""


@dataclass(frozen=True)
class Parted:
    """Positions of rows, ascending. Rows in neither are further copies of texts that were set aside."""

    kept: Ints
    aside: Ints


@dataclass(frozen=True)
class Gap:
    """What rows set aside lack most: texts that stand among all rows so often, or nearly so."""

    copies: int
    all: float  # share of all rows whose text stands there so often or more
    nearly: int
    aside: float  # share of the rows set aside whose text stands there, among all rows, nearly so often

    @property
    def lacking(self) -> float:
        """The share that is missing."""
        return self.all - self.aside


def part(texts: Ints, labels: Ints | None, size: int, seed: int) -> Parted:
    """Set `size` rows aside, or what comes near it.

    The most frequent text of each label is never set aside: what is asked most often should be learned. A frequent text
    of which only some copies are wanted is set aside with all, and the rest of them is left out of both sides.
    Rows whose text stands there once are those of a plain stratified draw: where no text repeats, all of them are.

    Args:
        texts: a number for each row [N], equal for equal texts.
        labels: classes [N] to keep the shares of; None where there are none, or too few rows of one.
        size: rows to set aside.
        seed: of all draws.
    """
    rows = np.arange(len(texts))
    _, drawn = train_test_split(rows, test_size=size, random_state=seed, stratify=labels)
    _, of, copies = np.unique(texts, return_inverse=True, return_counts=True)
    random = np.random.default_rng(seed)
    their_label = _most_common(of, labels)
    taken = np.zeros(len(copies), dtype=np.int64)
    for label in np.unique(their_label):
        mine = np.flatnonzero(their_label == label)
        wanted = np.bincount(of[drawn], minlength=len(copies))[mine]
        taken[mine] = _copies_taken(copies[mine], wanted, random)
    return _rows_of(of, taken, random)


def gap(texts: Ints, aside: Ints) -> Gap:
    """Compare rows set aside, given by their positions, with all: are there texts enough like the frequent ones?"""
    _, of, copies = np.unique(texts, return_inverse=True, return_counts=True)
    of_all, of_aside = copies[of], copies[of[aside]]

    def at(often: int) -> Gap:
        nearly = max(1, often // NEARLY)
        return Gap(often, float((of_all >= often).mean()), nearly, float((of_aside >= nearly).mean()))

    octaves = range(int(copies.max()).bit_length())
    return max((at(2**octave) for octave in reversed(octaves)), key=lambda one: one.lacking)


def _most_common(of: Ints, labels: Ints | None) -> Ints:
    """The label that most copies of each text have [G]; zeros without labels."""
    found = np.zeros(of.max() + 1, dtype=np.int64)
    if labels is not None:
        (text, label), often = np.unique(np.stack([of, labels]), axis=1, return_counts=True)
        order = np.argsort(often, kind="stable")
        found[text[order]] = label[order]
    return found


def _copies_taken(copies: Ints, drawn: Ints, random: np.random.Generator) -> Ints:
    """Of each text of a label, how many copies to set aside [G]; `drawn` is how many a plain draw of rows took.

    Octave by octave from the most frequent on: texts are taken whole while that comes nearer to what the octave should
    give. The difference goes to the next octave; only where that is empty a text is taken in part. At least half of the
    texts of an octave are left to learn from.
    """
    wanted, total = int(drawn.sum()), int(copies.sum())
    taken = np.zeros_like(copies)
    octaves = np.frexp(copies)[1] - 1
    first = int(np.argmax(copies))
    owed = 0.0
    for octave in np.unique(octaves[octaves > 0])[::-1]:
        here = np.flatnonzero(octaves == octave)
        owed += wanted * copies[here].sum() / total
        free = random.permutation(here[here != first])
        most = (len(here) + 1) // 2
        whole = _fitting(copies[free], owed, most, SLACK * wanted)
        taken[free[whole]] = copies[free[whole]]
        owed -= copies[free[whole]].sum()
        left = free[~whole]
        at_stake = owed >= max(1, SLACK * wanted)
        if at_stake and not np.any(octaves == octave - 1) and len(left) and whole.sum() < most:
            rarest = left[np.argmin(copies[left])]
            taken[rarest] = min(round(owed), copies[rarest])
            owed -= taken[rarest]
    once = np.flatnonzero(octaves == 0)
    in_order = once[np.lexsort((random.permutation(len(once)), -drawn[once]))]  # those that were drawn come first
    most = max(int(drawn[once].sum()), len(once) // 2)
    taken[in_order[: min(max(0, wanted - int(taken.sum())), most)]] = 1
    return taken


def _fitting(copies: Ints, owed: float, most: int, slack: float) -> npt.NDArray[np.bool_]:
    """Which texts, at most so many of them and taken one by one in order, come near to the rows that are owed."""
    chosen = np.zeros(len(copies), dtype=bool)
    beyond = np.minimum(copies / 2, slack)  # half a text at most, and no more than the slack
    least = (copies - beyond).min(initial=np.inf)
    for place, size in enumerate(copies):
        if most == 0 or owed < least:
            break
        if size <= owed + beyond[place]:
            chosen[place], owed, most = True, owed - size, most - 1
    return chosen


def _rows_of(of: Ints, taken: Ints, random: np.random.Generator) -> Parted:
    """The rows that so many copies of each text are, drawn where not all are taken."""
    order = random.permutation(len(of))
    order = order[np.argsort(of[order], kind="stable")]  # text by text, copies in random order
    text = of[order]
    starts = np.searchsorted(text, np.arange(len(taken)))
    place = np.arange(len(of)) - starts[text]
    aside = order[place < taken[text]]
    return Parted(np.flatnonzero(taken[of] == 0), np.sort(aside))
