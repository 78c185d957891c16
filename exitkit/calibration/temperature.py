"""Temperatures: one number per exit that makes its probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from exitkit.errors import UsageError
from exitkit.tasks import Answers, Classification, MultiLabel, Task

BINS = 15
LOW, HIGH = 0.05, 20.0


@dataclass(frozen=True)
class Temperatures:
    """What was fitted, and how far off the exits are without and with it, on rows that a fit has not seen.

    For the figures each half of the rows is measured with the temperatures of the other half; `values` are fitted on
    all rows.
    """

    values: tuple[float, ...]  # [E]
    nll: tuple[tuple[float, float], ...]  # [E] negative log-likelihood before and after, in nats
    ece: tuple[tuple[float, float], ...]  # [E] expected calibration error before and after, fractions of 1

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "values": list(self.values),
            "nll": {"before": [one[0] for one in self.nll], "after": [one[1] for one in self.nll]},
            "ece": {"before": [one[0] for one in self.ece], "after": [one[1] for one in self.ece]},
        }


def fit(logits: Tensor, truth: Answers | None, task: Task) -> Temperatures:
    """Temperature scaling (Guo et al., 1706.04599, section 4.2) of every exit by itself.

    Args:
        logits: [E, N, C] recorded answers.
        truth: labels of the rows.
        task: classification or multi-label; in the latter the logits of all labels share a temperature.

    Raises:
        UsageError: rows without labels, or regression.
    """
    if not isinstance(task, Classification | MultiLabel):
        raise UsageError(f"--temperature: {task.kind} has no probabilities to calibrate.")
    if truth is None:
        raise UsageError("--temperature needs labelled calibration rows. Give some with --data and --split.")
    labels = torch.as_tensor(truth)
    even = torch.arange(logits.shape[1]) % 2 == 0
    values, nll, ece = [], [], []
    for said in logits.float():
        values.append(_fit(said, labels, task))
        tempered = said.clone()
        for half in (even, ~even):
            if half.any() and (~half).any():
                tempered[half] /= _fit(said[~half], labels[~half], task)
        nll.append((_nll(said, labels, task), _nll(tempered, labels, task)))
        ece.append((calibration_error(said, labels, task), calibration_error(tempered, labels, task)))
    return Temperatures(tuple(values), tuple(nll), tuple(ece))


def calibration_error(logits: Tensor, labels: Tensor, task: Task) -> float:
    """Expected calibration error (1706.04599, eq. 3): mean |confidence − accuracy| over 15 equal bins, by rows.

    In multi-label every label of every row counts as a row with two classes.
    """
    shares = task.probabilities(logits)
    if isinstance(task, MultiLabel):
        confidence, right = torch.maximum(shares, 1 - shares).flatten(), ((shares > 0.5) == labels.bool()).flatten()
    else:
        confidence, best = shares.max(dim=-1)
        right = best == labels
    sure, hit = confidence.double().numpy(), right.double().numpy()
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.abs(np.bincount(bins, sure, BINS) - np.bincount(bins, hit, BINS))
    return float(gap.sum() / len(sure))


def _fit(logits: Tensor, labels: Tensor, task: Task) -> float:
    found = minimize_scalar(
        lambda log_t: _nll(logits / float(np.exp(log_t)), labels, task),
        bounds=(np.log(LOW), np.log(HIGH)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(f"{np.exp(found.x):.4g}")


def _nll(logits: Tensor, labels: Tensor, task: Task) -> float:
    return float(task.loss(logits, labels).mean())
