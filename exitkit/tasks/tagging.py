"""Task `tagging`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from exitkit.errors import UsageError, one_of
from exitkit.tasks import tags
from exitkit.tasks.classification import Classification
from exitkit.tasks.task import Answers, Metric


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
        return tags.scheme_of(self.labels)

    @property
    def fallback(self) -> int:
        """The tag of a word that the model never sees: O, else the first."""
        return self.labels.index(tags.OUTSIDE) if tags.OUTSIDE in self.labels else 0

    @property
    def default_metric(self) -> str:
        """Strict F1 of spans where the tags write spans, else the share of words with the right tag."""
        return "span_f1" if self.scheme else "accuracy"

    def metric(self, name: str) -> Metric:
        """The metric of a name; `f1:LABEL` is of a kind of span, or of a tag."""
        labels, scheme = self.labels, self.scheme
        kinds = sorted({label.partition("-")[2] for label in labels if label != tags.OUTSIDE}) if scheme else []
        found: dict[str, Metric] = {
            "accuracy": tags.word_accuracy(),
            "agreement": tags.word_accuracy(),
            "f1_macro": tags.word_f1_macro(len(labels)),
        }
        if scheme:
            found["span_f1"] = tags.span_f1(labels, scheme)
        if name in found:
            return found[name]
        wanted = name.removeprefix("f1:")
        if not name.startswith("f1:"):
            plain = " The tags are plain: there are no spans." if name == "span_f1" else ""
            raise UsageError(f"--metric: for tagging: {one_of('metric', name, [*found, 'f1:LABEL'])}{plain}")
        if scheme and wanted in kinds:
            return tags.span_f1(labels, scheme, wanted)
        if wanted in labels:
            return tags.word_f1(labels.index(wanted))
        raise UsageError("--metric: " + one_of("label", wanted, [*kinds, *labels]))

    def agreement(self, some: Answers, others: Answers) -> float:
        """Share of words with the same tag."""
        return tags.word_accuracy()(some, others)

    def spelled(self, label: Any) -> str:
        """The tags of a sentence, each on a line, nothing for words that are left out; of a single word the tag."""
        return "\n".join("" if number == tags.LEFT_OUT else self.labels[number] for number in np.atleast_1d(label))
