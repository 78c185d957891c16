"""Scores of answers, as fractions of 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sklearn_metrics

from exitkit.config import METRICS
from exitkit.errors import UsageError, one_of

Labels = npt.NDArray[np.int64]
Metric = Callable[[Labels, Labels], float]
"""metric(truth [N], answers [N])"""

DEFAULT = "accuracy"


def metric(name: str, labels: Sequence[str]) -> Metric:
    """The metric of a name.

    Args:
        name: `accuracy`, `f1_macro`, `f1:LABEL`, `mcc` (Matthews), or `agreement` (accuracy against the full model's
            answers, which the caller passes as truth).
        labels: the label names, in order of their numbers.
    """
    if name in ("accuracy", "agreement"):
        return lambda truth, answers: float((truth == answers).mean())
    if name == "f1_macro":
        return lambda truth, answers: float(sklearn_metrics.f1_score(truth, answers, average="macro", zero_division=0))
    if name == "mcc":
        return lambda truth, answers: float(sklearn_metrics.matthews_corrcoef(truth, answers))
    if name.startswith("f1:"):
        wanted = name.removeprefix("f1:")
        if wanted not in labels:
            raise UsageError("--metric: " + one_of("label", wanted, labels))
        number = list(labels).index(wanted)
        return lambda truth, answers: float(
            sklearn_metrics.f1_score(truth == number, answers == number, zero_division=0)
        )
    raise UsageError(one_of("metric", name, METRICS))


def needs_labels(name: str) -> bool:
    """Whether a metric compares with labels; `agreement` compares with the full model."""
    return name != "agreement"


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
