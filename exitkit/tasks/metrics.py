"""Scores of answers, as fractions of 1: metric(truth, answers) over units [N], or over [N, C] in multi-label.

Metrics that are functions of counts say so (`OfSums`): a bootstrap of theirs sums counts and never looks at rows again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[Any]
Counts = npt.NDArray[np.float64]
DRAWN_AT_ONCE = 2**22  # counts of rows that a bootstrap holds in memory at a time


@dataclass(frozen=True)
class OfSums:
    """A metric that is a function of sums over rows."""

    counts: Callable[[Values, Values], Counts]  # (truth, answers) -> [N, k]
    value: Callable[[Counts], Counts]  # sums [..., k] -> [...]

    def __call__(self, truth: Values, answers: Values) -> float:
        """The score of all rows."""
        return float(self.value(self.counts(truth, answers).sum(axis=0)))


def _same(truth: Values, answers: Values) -> Counts:
    same = truth == answers
    same = same if same.ndim == 1 else same.all(axis=1)
    return np.stack([same, np.ones(len(same))], axis=1).astype(float)


def _both_true_given(truth: Values, answers: Values) -> Counts:
    """Per row and class whether it is right, true, given: [N, 3 C], class by class."""
    if truth.ndim == 1 and truth.dtype != bool:
        classes = np.arange(1 + max(truth.max(initial=0), answers.max(initial=0)))
        truth, answers = truth[:, None] == classes, answers[:, None] == classes
    truth, answers = (side.reshape(len(side), -1).astype(bool) for side in (truth, answers))
    return np.stack([truth & answers, truth, answers], axis=2).reshape(len(truth), -1).astype(float)


def share(sums: Counts) -> Counts:
    """First ÷ second of [..., 2]; 0 for nothing."""
    found: Counts = sums[..., 0] / np.maximum(sums[..., 1], 1)
    return found


def f1(sums: Counts) -> Counts:
    """2·both / (true + given) of [..., 3]; 0 where there is nothing."""
    found: Counts = 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)
    return found


def macro(sums: Counts) -> Counts:
    """F1 of every class of [..., 3 C] that occurs in the truth or among the answers, averaged."""
    parts = sums.reshape(*sums.shape[:-1], -1, 3)
    occurs = parts[..., 1] + parts[..., 2] > 0
    found: Counts = (f1(parts) * occurs).sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return found


def _macro_of_labels(sums: Counts) -> Counts:
    found: Counts = f1(sums.reshape(*sums.shape[:-1], -1, 3)).mean(axis=-1)
    return found


def _micro(sums: Counts) -> Counts:
    return f1(sums.reshape(*sums.shape[:-1], -1, 3).sum(axis=-2))


def _matthews(sums: Counts) -> Counts:
    """Gorodkin's form for any number of classes, from how often each is true, given, and right; 0 where it has none."""
    parts = sums.reshape(*sums.shape[:-1], -1, 3)
    both, true, given = parts[..., 0].sum(-1), parts[..., 1], parts[..., 2]
    rows = true.sum(-1)
    spread = (rows**2 - (true**2).sum(-1)) * (rows**2 - (given**2).sum(-1))
    found: Counts = (both * rows - (true * given).sum(-1)) / np.sqrt(np.where(spread > 0, spread, np.inf))
    return found


def _moments(truth: Values, answers: Values) -> Counts:
    """Per row 1, x, y, x², y², xy, about the means of all rows, for the sake of precision."""
    x, y = (side - side.mean() if len(side) else side for side in (truth.astype(float), answers.astype(float)))
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _linear(sums: Counts) -> Counts:
    rows, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    rows = np.maximum(rows, 1)
    spread = (xx - x * x / rows) * (yy - y * y / rows)
    found: Counts = (xy - x * y / rows) / np.sqrt(np.where(spread > 1e-12 * xx * yy, spread, np.inf))
    return found


accuracy = OfSums(_same, share)
"""Share of units whose answer is right; in multi-label all classes of it."""

f1_macro = OfSums(_both_true_given, macro)
"""F1 of every class that occurs, averaged."""

f1_macro_of_labels = OfSums(_both_true_given, _macro_of_labels)
"""In multi-label F1 of every class, averaged; one that never occurs counts 0."""

f1_micro = OfSums(_both_true_given, _micro)
"""F1 over all decisions of all classes; with one class per unit it equals accuracy."""

f1_binary = OfSums(_both_true_given, f1)
"""F1 of one class, from whether it holds."""

mcc = OfSums(_both_true_given, _matthews)
"""Matthews' correlation."""


pearson = OfSums(_moments, _linear)
"""Linear correlation of values; 0 where one side is constant."""


def spearman(truth: Values, answers: Values) -> float:
    """Correlation of ranks; 0 where one side is constant."""
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(answers) == 0:
        return 0.0
    return float(stats.spearmanr(truth, answers).statistic)


def intervals_of_sums(
    statistics: Callable[..., Sequence[Counts]], *counts: Counts, seed: int = 0, resamples: int = 1000
) -> list[tuple[float, float]]:
    """`interval`, for statistics of sums over rows: of [N, k] arrays, each summed over the same drawn rows."""
    rows, random = len(counts[0]), np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // rows)
    values = []
    for first in range(0, resamples, at_once):
        some = min(at_once, resamples - first)
        drawn = random.multinomial(rows, np.full(rows, 1 / rows), size=some).astype(np.float64)  # [R, N]
        values.append(np.stack(statistics(*(drawn @ one for one in counts))))
    return [(float(low), float(high)) for low, high in np.percentile(np.hstack(values), [2.5, 97.5], axis=1).T]


def interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], rows: int, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic of row numbers (paired when it compares two answers).

    Own code because the metrics are functions of index sets: scipy's bootstrap resamples values, axis by axis.
    """
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(0, rows, rows)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
