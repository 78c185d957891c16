"""Scores of answers, as fractions of 1: metric(truth, answers) over units [N], or over [N, C] in multi-label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics as sklearn_metrics

Values = npt.NDArray[Any]


def accuracy(truth: Values, answers: Values) -> float:
    """Share of units whose answer is right; in multi-label all classes of it."""
    same = truth == answers
    return float((same if same.ndim == 1 else same.all(axis=1)).mean())


def f1_macro(truth: Values, answers: Values) -> float:
    """F1 of every class, averaged."""
    return float(sklearn_metrics.f1_score(truth, answers, average="macro", zero_division=0))


def f1_micro(truth: Values, answers: Values) -> float:
    """F1 over all decisions of all classes; with one class per unit it equals accuracy."""
    return float(sklearn_metrics.f1_score(truth, answers, average="micro", zero_division=0))


def f1_binary(truth: Values, answers: Values) -> float:
    """F1 of one class, from whether it holds."""
    return float(sklearn_metrics.f1_score(truth, answers, zero_division=0))


def mcc(truth: Values, answers: Values) -> float:
    """Matthews' correlation."""
    return float(sklearn_metrics.matthews_corrcoef(truth, answers))


def pearson(truth: Values, answers: Values) -> float:
    """Linear correlation of values; 0 where one side is constant."""
    return _correlation(stats.pearsonr, truth, answers)


def spearman(truth: Values, answers: Values) -> float:
    """Correlation of ranks; 0 where one side is constant."""
    return _correlation(stats.spearmanr, truth, answers)


def _correlation(of: Callable[..., Any], truth: Values, answers: Values) -> float:
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(answers) == 0:
        return 0.0
    return float(of(truth, answers).statistic)


def interval_of_sums(
    statistic: Callable[..., Values], *counts: Values, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """`interval`, for a statistic of sums over rows: of [N, k] arrays, each summed over the same drawn rows."""
    rows = len(counts[0])
    drawn = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)  # [R, N]
    low, high = np.percentile(statistic(*(drawn @ one for one in counts)), [2.5, 97.5])
    return float(low), float(high)


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
