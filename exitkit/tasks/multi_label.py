"""Task `multi-label`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from exitkit.tasks import metrics
from exitkit.tasks.task import Answers, Metric, Task, with_all


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of C classes at once; a label is a row of C zeros and ones."""

    kind: ClassVar[str] = "multi-label"
    problem_type: ClassVar[str] = "multi_label_classification"
    default_policy: ClassVar[str] = "entropy"
    scores: ClassVar[Mapping[str, Metric]] = {
        "f1_micro": metrics.f1_micro,
        "f1_macro": metrics.f1_macro_of_labels,
        "accuracy": metrics.accuracy,  # all labels of a row right
    }

    def answers(self, logits: Tensor) -> Answers:
        """Whether each class holds [..., N, C]: its probability is above one half."""
        return (logits > 0).cpu().numpy()

    def faith(self, full: Tensor) -> Callable[[Tensor], float]:
        """The full model's mean probability of what is said of each class."""
        shares = self.probabilities(full)
        return lambda given: float(torch.where(given > 0, shares, 1 - shares).mean())

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Binary cross-entropy, the mean over classes; `weights` multiply the loss where a class holds."""
        truth = labels.float()
        return functional.binary_cross_entropy_with_logits(
            logits.float(), truth, pos_weight=weights, reduction="none"
        ).mean(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Sigmoid, class by class."""
        return logits.float().sigmoid()

    def rows(self, logits: Tensor, probabilities: bool = False) -> list[dict[str, Any]]:
        """Lists of the classes that hold and of their probabilities."""
        shares = self.probabilities(logits)
        found = []
        for share in shares.tolist():
            holding = [number for number, value in enumerate(share) if value > 0.5]
            found.append({"label": [self.labels[n] for n in holding], "score": [share[n] for n in holding]})
        return with_all(found, self.labels, shares) if probabilities else found

    def spelled(self, label: Any) -> str:
        """The names of the classes that hold, each on a line."""
        return "\n".join(name for name, holds in zip(self.labels, label, strict=True) if holds)

    @staticmethod
    def _holds(number: int, answers: Answers) -> Answers:
        held: Answers = answers[:, number].astype(bool)
        return held
