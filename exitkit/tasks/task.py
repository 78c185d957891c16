"""What every task says of its labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy.typing as npt
from torch import Tensor

from exitkit.errors import UsageError, one_of
from exitkit.tasks import metrics

Answers = npt.NDArray[Any]
"""What a task says of rows: class numbers [N], values [N], membership in classes [N, C], or in tagging an object array
[N] with the tag numbers of each sentence."""

Metric = Callable[[Answers, Answers], float]
"""metric(truth, answers)"""


@dataclass(frozen=True)
class Task(ABC):
    """One kind of label with its names.

    `agreement` as a metric compares with the full model, whose answers the caller passes as truth.
    """

    labels: tuple[str, ...]  # class names in order of their numbers; empty in regression

    kind: ClassVar[str]
    problem_type: ClassVar[str | None]
    """The word that transformers uses in config.json; None where its classifiers are another class."""
    default_policy: ClassVar[str]
    scores: ClassVar[Mapping[str, Metric]]
    """Metrics by name; the first is the default. `f1:LABEL` is one more wherever there are labels."""

    @property
    def outputs(self) -> int:
        """C, the number of logits per unit."""
        return len(self.labels)

    @property
    def default_metric(self) -> str:
        """The metric where nobody chose one."""
        return next(iter(self.scores))

    def metric(self, name: str) -> Metric:
        """The metric of a name. Raises UsageError: this task has none of that name."""
        if name == "agreement":
            return self.agreement
        if name in self.scores:
            return self.scores[name]
        known = [*self.scores, "agreement", *(["f1:LABEL"] if self.labels else [])]
        wanted = name.removeprefix("f1:")
        if not (self.labels and name.startswith("f1:")):
            raise UsageError(f"--metric: for {self.kind}: {one_of('metric', name, known)}")
        if wanted not in self.labels:
            raise UsageError("--metric: " + one_of("label", wanted, self.labels))
        number = self.labels.index(wanted)
        holds = partial(self._holds, number)
        return metrics.OfSums(lambda truth, given: metrics.f1_binary.counts(holds(truth), holds(given)), metrics.f1)

    @abstractmethod
    def answers(self, logits: Tensor) -> Answers:
        """Answers to logits [..., N, C]."""

    def agreement(self, some: Answers, others: Answers) -> float:
        """How far two sets of answers say the same: the share of units with equal ones."""
        return metrics.accuracy(some, others)

    @abstractmethod
    def faith(self, full: Tensor) -> Callable[[Tensor], float]:
        """Says of logits [N, C] how far their answers are those of the full model's, `full` [N, C]; more is better.

        With classes the share of right answers to expect if the full model's probabilities were true: where it is
        unsure itself, another answer costs little. Smoother than agreement, and no label is needed.
        """

    def unit_scores(self, truth: Answers, given: Answers) -> Answers:
        """What each unit's answer is worth [N], for shares of parts of the rows: 1 right, 0 wrong."""
        same: Answers = truth == given
        return (same if same.ndim == 1 else same.all(axis=1)).astype(float)

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Loss of every unit [U] of logits [U, C]; `weights` [C] multiply the loss of a class."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities [N, C]. Raises UsageError where there are none."""

    @abstractmethod
    def rows(self, logits: Tensor, probabilities: bool = False) -> list[dict[str, Any]]:
        """Answers as plain values, a mapping with `label` and `score` per unit."""

    def spelled(self, label: Any) -> str:
        """A stored label as text, the same for every file format."""
        return str(self.labels[label])

    @staticmethod
    def _holds(number: int, answers: Answers) -> Answers:
        """Whether a class holds [N]."""
        held: Answers = answers == number
        return held


def with_all(found: list[dict[str, Any]], labels: Sequence[str], shares: Tensor) -> list[dict[str, Any]]:
    """Answers with the probabilities [N, C] of all labels."""
    return [
        {**one, "probabilities": dict(zip(labels, share, strict=True))}
        for one, share in zip(found, shares.tolist(), strict=True)
    ]
