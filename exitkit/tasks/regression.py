"""Task `regression`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional

from exitkit.errors import UsageError
from exitkit.tasks import metrics
from exitkit.tasks.task import Answers, Metric, Task


@dataclass(frozen=True)
class Regression(Task):
    """A number."""

    labels: tuple[str, ...] = ()

    kind: ClassVar[str] = "regression"
    problem_type: ClassVar[str] = "regression"
    default_policy: ClassVar[str] = "patience"
    scores: ClassVar[Mapping[str, Metric]] = {"pearson": metrics.pearson, "spearman": metrics.spearman}

    @property
    def outputs(self) -> int:
        """One value."""
        return 1

    def answers(self, logits: Tensor) -> Answers:
        """Values [..., N]."""
        return logits.squeeze(-1).double().cpu().numpy()

    def unit_scores(self, truth: Answers, given: Answers) -> Answers:
        """The absolute error of each value; less is better."""
        error: Answers = np.abs(truth - given)
        return error

    def agreement(self, some: Answers, others: Answers) -> float:
        """Pearson's correlation: two models hardly ever give equal numbers."""
        return metrics.pearson(some, others)

    def faith(self, full: Tensor) -> Callable[[Tensor], float]:
        """Minus the mean squared difference."""
        return lambda given: -float((full - given).square().mean())

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Squared error."""
        return functional.mse_loss(logits.float().squeeze(-1), labels.float(), reduction="none")

    def probabilities(self, logits: Tensor) -> Tensor:
        """There are none."""
        raise UsageError("a regression model answers with a number and has no probabilities; use predict.")

    def rows(self, logits: Tensor, probabilities: bool = False) -> list[dict[str, Any]]:
        """The value as `label`; `score` is None."""
        if probabilities:
            self.probabilities(logits)
        return [{"label": value, "score": None} for value in logits.squeeze(-1).tolist()]

    def spelled(self, label: Any) -> str:
        """Shortest decimal form that gives the same fp32 number."""
        return str(np.float32(label))
