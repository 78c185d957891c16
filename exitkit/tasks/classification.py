"""Task `classification`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from exitkit.tasks import metrics
from exitkit.tasks.task import Answers, Metric, Task, with_all


@dataclass(frozen=True)
class Classification(Task):
    """One of C classes."""

    kind: ClassVar[str] = "classification"
    problem_type: ClassVar[str | None] = "single_label_classification"
    default_policy: ClassVar[str] = "entropy"
    scores: ClassVar[Mapping[str, Metric]] = {
        "accuracy": metrics.accuracy,
        "f1_macro": metrics.f1_macro,
        "f1_micro": metrics.f1_micro,
        "mcc": metrics.mcc,
    }

    def answers(self, logits: Tensor) -> Answers:
        """Class numbers [..., N]; ties go to the first."""
        return logits.argmax(dim=-1).cpu().numpy()

    def faith(self, full: Tensor) -> Callable[[Tensor], float]:
        """The full model's mean probability of the classes given."""
        shares = self.probabilities(full)
        return lambda given: float(shares.gather(1, given.argmax(dim=1, keepdim=True)).mean())

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(logits.float(), labels, weight=weights, reduction="none")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax."""
        return logits.float().softmax(dim=-1)

    def rows(self, logits: Tensor, probabilities: bool = False) -> list[dict[str, Any]]:
        """The most probable class and its probability."""
        shares = self.probabilities(logits)
        found = [
            {"label": self.labels[number], "score": share[number]}
            for number, share in zip(shares.argmax(dim=-1).tolist(), shares.tolist(), strict=True)
        ]
        return with_all(found, self.labels, shares) if probabilities else found
