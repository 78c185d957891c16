"""What a label is, task by task: how logits become an answer, how answers are scored, what a loss is.

A task knows nothing of models or files. `Rows` carry the task of their labels, an artifact that of its training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from exitkit import metrics, tagging
from exitkit.errors import UsageError, one_of

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
        return _with_all(found, self.labels, shares) if probabilities else found


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
        return _with_all(found, self.labels, shares) if probabilities else found

    def spelled(self, label: Any) -> str:
        """The names of the classes that hold, each on a line."""
        return "\n".join(name for name, holds in zip(self.labels, label, strict=True) if holds)

    @staticmethod
    def _holds(number: int, answers: Answers) -> Answers:
        held: Answers = answers[:, number].astype(bool)
        return held


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


@dataclass(frozen=True)
class Tagging(Classification):
    """One of C tags for every word; a label is the list of a sentence's tags."""

    kind: ClassVar[str] = "tagging"
    problem_type: ClassVar[str | None] = None
    default_policy: ClassVar[str] = "token-window"
    scores: ClassVar[Mapping[str, Metric]] = {}

    @property
    def scheme(self) -> str | None:
        """How spans are written in the tags (IOB2, IOBES, BILOU); None where tags are plain."""
        return tagging.scheme_of(self.labels)

    @property
    def fallback(self) -> int:
        """The tag of a word that the model never sees: O, else the first."""
        return self.labels.index(tagging.OUTSIDE) if tagging.OUTSIDE in self.labels else 0

    @property
    def default_metric(self) -> str:
        """Strict F1 of spans where the tags write spans, else the share of words with the right tag."""
        return "span_f1" if self.scheme else "accuracy"

    def metric(self, name: str) -> Metric:
        """The metric of a name; `f1:LABEL` is of a kind of span, or of a tag."""
        labels, scheme = self.labels, self.scheme
        kinds = sorted({label.partition("-")[2] for label in labels if label != tagging.OUTSIDE}) if scheme else []
        found: dict[str, Metric] = {
            "accuracy": tagging.word_accuracy(),
            "agreement": tagging.word_accuracy(),
            "f1_macro": tagging.word_f1_macro(len(labels)),
        }
        if scheme:
            found["span_f1"] = tagging.span_f1(labels, scheme)
        if name in found:
            return found[name]
        wanted = name.removeprefix("f1:")
        if not name.startswith("f1:"):
            plain = " The tags are plain: there are no spans." if name == "span_f1" else ""
            raise UsageError(f"--metric: for tagging: {one_of('metric', name, [*found, 'f1:LABEL'])}{plain}")
        if scheme and wanted in kinds:
            return tagging.span_f1(labels, scheme, wanted)
        if wanted in labels:
            return tagging.word_f1(labels.index(wanted))
        raise UsageError("--metric: " + one_of("label", wanted, [*kinds, *labels]))

    def agreement(self, some: Answers, others: Answers) -> float:
        """Share of words with the same tag."""
        return tagging.word_accuracy()(some, others)

    def spelled(self, label: Any) -> str:
        """The tags of a sentence, each on a line, nothing for words that are left out; of a single word the tag."""
        return "\n".join("" if number == tagging.LEFT_OUT else self.labels[number] for number in np.atleast_1d(label))


TASKS: Mapping[str, type[Task]] = {task.kind: task for task in (Classification, Regression, MultiLabel, Tagging)}


def task(kind: str, labels: Sequence[str]) -> Task:
    """The task of a kind and its labels. Raises UsageError for an unknown kind."""
    if kind not in TASKS:
        raise UsageError(one_of("task", kind, TASKS))
    return TASKS[kind](tuple(labels))


def needs_labels(metric: str) -> bool:
    """Whether a metric compares with labels; `agreement` compares with the full model."""
    return metric != "agreement"


def balanced(labels: Answers, task: Task) -> Tensor:
    """Class weights [C] that give every class the same say: N / (C · rows of the class), as in scikit-learn.

    In multi-label, (N − rows with the class) / rows with the class. A class without a row has weight 1.

    Raises UsageError: regression has no classes.
    """
    if not task.labels:
        raise UsageError("--class-weights: regression has no classes to weigh.")
    if labels.dtype == object:
        labels = np.concatenate(labels)
    if labels.ndim == 2:
        counts = labels.sum(axis=0).astype(float)
        weights = (len(labels) - counts) / np.maximum(counts, 1)
    else:
        counts = np.bincount(labels, minlength=len(task.labels)).astype(float)
        weights = len(labels) / (len(task.labels) * np.maximum(counts, 1))
    return torch.tensor(np.where(counts > 0, weights, 1.0), dtype=torch.float32)


def _with_all(found: list[dict[str, Any]], labels: Sequence[str], shares: Tensor) -> list[dict[str, Any]]:
    return [
        {**one, "probabilities": dict(zip(labels, share, strict=True))}
        for one, share in zip(found, shares.tolist(), strict=True)
    ]
