"""Real runs over rows: what calibrate confirms with and benchmark reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from exitkit import containment
from exitkit.artifacts.artifact import Artifact
from exitkit.data.batches import Reader, batches, encode, present
from exitkit.data.sources import Rows
from exitkit.data.splits import label_array
from exitkit.engine.cost import Prices, speedups
from exitkit.engine.limits import Limits
from exitkit.engine.schedule import Schedule, schedule
from exitkit.engine.stream import Batch
from exitkit.engine.trace import Trace
from exitkit.errors import ExitkitError, PluginError
from exitkit.plugins import Registry
from exitkit.policy import has_gates
from exitkit.progress import bar
from exitkit.tasks import Answers, Tagging, Task, metrics, needs_labels
from exitkit.tasks.metrics import OfSums
from exitkit.tasks.tags import LEFT_OUT, sentences

log = logging.getLogger("exitkit")


class Sample:
    """Rows as a model reads them, and answers of rows out of logits of units.

    Outside of tagging rows are units. In tagging a word that truncation cut off, or that has no token at all, is no
    unit: it gets the task's fallback tag.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        task: Task,
        device: torch.device,
        others: Mapping[str, Reader] | None = None,
    ) -> None:
        """`others` read the rows in their own way besides, see `Artifact.others`."""
        self.rows, self.task, self.device = rows, task, device
        self.readers = {"": Reader(tokenizer, max_length), **(others or {})}
        self.encoded = {
            prefix: _inputs(rows, reader, isinstance(task, Tagging)) for prefix, reader in self.readers.items()
        }
        self.truth: Answers | None = label_array(rows) if rows.task else None
        self.words: Words | None = words_of(rows, self.encoded[""]) if isinstance(task, Tagging) else None
        if isinstance(task, Tagging) and self.words and self.words.lost:
            log.warning(
                "%d of %d words have no token (behind token %d of their row, or unknown to the tokenizer): they are "
                "answered '%s'",
                self.words.lost,
                self.words.total,
                max_length,
                task.labels[task.fallback],
            )

    @classmethod
    def of(cls, rows: Rows, model: Artifact) -> Sample:
        """Rows as an artifact reads them."""
        return cls(rows, model.tokenizer, model.card.max_length, model.task, model.model.device, model.others)

    def batches(self, size: int) -> list[Batch]:
        """Padded batches on the model's device, in order."""
        ways = [batches(self.encoded[prefix], reader.tokenizer, size) for prefix, reader in self.readers.items()]
        return [
            {
                prefix + name: rows.to(self.device)
                for prefix, batch in zip(self.readers, read, strict=True)
                for name, rows in batch.items()
            }
            for read in zip(*ways, strict=True)
        ]

    def answers(self, logits: Tensor, places: npt.NDArray[np.int64] | None = None) -> Answers:
        """Answers of the rows to logits of the units [U, C], or of words at these places [U] among all."""
        of_units = self.task.answers(logits)
        if self.words is None:
            return of_units
        assert isinstance(self.task, Tagging)
        everything = np.full(self.words.total, self.task.fallback)
        everything[self.words.seen if places is None else places] = of_units
        return sentences(np.split(everything, self.words.ends[:-1]))

    def unit_labels(self) -> Answers | None:
        """Labels of the units [U], or None for unlabelled rows."""
        if self.words is None or self.truth is None:
            return self.truth
        return self.by_unit(self.truth)

    def by_unit(self, answers: Answers) -> Answers:
        """Answers of rows as answers of units [U]."""
        return answers if self.words is None else self.words.of_units(answers)


def _inputs(rows: Rows, reader: Reader, tagging: bool) -> Dataset:
    """Rows as token ids, without labels."""
    encoded = encode(rows, reader.tokenizer, reader.max_length, tagging)
    return encoded.remove_columns("labels") if "labels" in encoded.column_names else encoded


@dataclass(frozen=True)
class Words:
    """Where the units of sentences stand among all words. Words that are left out of the labels do not count."""

    ends: npt.NDArray[np.int64]  # [N] words up to and with each sentence
    seen: npt.NDArray[np.int64]  # [U] place of each unit among all words, end to end
    row: npt.NDArray[np.int64]  # [U] sentence of each unit
    number: npt.NDArray[np.int64]  # [U] which word of its sentence each unit is, from 0; words left out count here

    @property
    def total(self) -> int:
        """How many words there are."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def of_units(self, answers: Answers) -> Answers:
        """Answers of sentences as answers of units [U]."""
        found: Answers = np.concatenate(answers)[self.seen] if len(answers) else np.zeros(0, dtype=np.int64)
        return found

    @property
    def lost(self) -> int:
        """How many of them the model never sees."""
        return self.total - len(self.seen)


def told_of_words(sample: Sample) -> dict[str, Any]:
    """In tagging the scheme of the tags (None: plain), words, and how many of them have no token; else nothing."""
    if sample.words is None or not isinstance(sample.task, Tagging):
        return {}
    return {"scheme": sample.task.scheme, "words": sample.words.total, "words_lost": sample.words.lost}


def words_of(rows: Rows, encoded: Dataset) -> Words:
    """Match the words of rows with their tokens."""
    own = [np.asarray(present(owners), dtype=np.int64) for owners in encoded["words"]]
    counts = [len(words) for words in rows.data["words"][:]] if "words" in rows.data.column_names else None
    places = own
    if rows.task is not None:
        kept = [np.flatnonzero(np.asarray(tags) != LEFT_OUT) for tags in rows.data["label"][:]]
        counts = [len(one) for one in kept]
        places = [np.searchsorted(one, seen) for one, seen in zip(kept, own, strict=True)]
    elif counts is None:
        counts = [int(max(seen, default=-1)) + 1 for seen in own]
    ends = np.cumsum(counts, dtype=np.int64)
    seen = [start + place for start, place in zip(ends - counts, places, strict=True)]
    row = np.repeat(np.arange(len(own)), [len(one) for one in own])
    none = np.zeros(0, dtype=np.int64)
    return Words(ends, np.concatenate([none, *seen]), row, np.concatenate([none, *own]))


def gates_only(name: str, model: Artifact, registry: Registry) -> Schedule:
    """A policy with gates at its defaults, and nobody leaving before the last exit."""
    shape = model.model.shape
    return schedule(name, registry.policy(name), {}, shape, Limits(min_exit=shape.exits))


def gated_answers(
    name: str, model: Artifact, registry: Registry, sample: Sample, batches: Sequence[Batch]
) -> Answers | None:
    """What the last exit answers behind a policy's gates; None for a policy without gates."""
    if not has_gates(registry.policy(name)):
        return None
    return sample.answers(run_all(model, batches, gates_only(name, model, registry), f"gates of {name}").logits)


def run_all(model: Artifact, rows: Sequence[Batch], plan: Schedule, title: str) -> Trace:
    """Answer all batches."""
    traces = []
    with bar(title, len(rows)) as advance:
        for batch in rows:
            traces.append(model.model.run(batch, plan))
            advance()
    trace = Trace.join(traces)
    if not torch.isfinite(trace.logits).all():
        wrong = next(row for row, one in zip(rows, traces, strict=True) if not torch.isfinite(one.logits).all())
        raise not_finite(model, wrong, plan)
    return trace


def not_finite(model: Artifact, batch: Batch, plan: Schedule) -> ExitkitError:
    """Who is to blame for answers that are NaN or infinite."""
    damaged = ExitkitError(f"{model.folder}: the model answers NaN or infinite values; its weights are damaged.")
    return policys_fault(model, batch, plan) or damaged


def policys_fault(model: Artifact, batch: Batch, plan: Schedule) -> PluginError | None:
    """The error of a policy that answers NaN or infinite values where every exit's own answers are finite."""
    with torch.inference_mode():
        logits = model.model.full_pass(batch).logits
    if not torch.isfinite(logits).all():
        return None
    return containment.broken("policy", plan.name, "it answers NaN or infinite values, and the exits do not.")


@dataclass(frozen=True)
class Scored:
    """Scores of a run against labels and against the full model."""

    metric: str
    score: float
    full_score: float
    agreement: float
    score_ci: tuple[float, float]
    drop_ci: tuple[float, float]  # of drop, paired
    gated_score: float | None = None  # of the last exit with gates, where the policy has some

    @property
    def drop(self) -> float:
        """What the run loses: against the full model, or against the gated one if that scores more."""
        gated = self.full_score if self.gated_score is None else self.gated_score
        return max(self.full_score, gated) - self.score

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "metric": self.metric,
            "score": self.score,
            "score_ci": list(self.score_ci),
            "full_score": self.full_score,
            "drop": self.drop,
            "drop_ci": list(self.drop_ci),
            "agreement": self.agreement,
            **({} if self.gated_score is None else {"gated_score": self.gated_score}),
        }


def reference_of(metric: str, truth: Answers | None, full: Answers) -> Answers:
    """What answers are compared with: labels, or the full model's answers where there are none."""
    return full if truth is None or not needs_labels(metric) else truth


def score(
    task: Task,
    metric: str,
    truth: Answers | None,
    answers: Answers,
    full: Answers,
    gated: Answers | None = None,
) -> Scored:
    """Score answers beside the full model's; the interval of the loss is paired over rows.

    Args:
        task: of the labels.
        metric: its name.
        truth: labels, or None for rows without.
        answers: of the run.
        full: the full model's.
        gated: those of the last exit with gates. If they score more than the full model's, losses count from them:
            a policy must not look good because its gates were trained to do without the full model.
    """
    compare = task.metric(metric)
    reference = reference_of(metric, truth, full)

    def of(given: Answers, rows: npt.NDArray[np.int64]) -> float:
        return compare(reference[rows], given[rows])

    everyone = np.arange(len(answers))
    full_score = of(full, everyone)
    gated_score = None if gated is None else of(gated, everyone)
    best = full if gated is None or gated_score is None or gated_score <= full_score else gated
    if isinstance(compare, OfSums):
        mine, theirs = compare.counts(reference, answers), compare.counts(reference, best)
        value = compare.value
        score_ci, drop_ci = metrics.intervals_of_sums(lambda a, b: (value(a), value(b) - value(a)), mine, theirs)
    else:
        score_ci = metrics.interval(lambda rows: of(answers, rows), len(answers))
        drop_ci = metrics.interval(lambda rows: of(best, rows) - of(answers, rows), len(answers))
    return Scored(
        metric=metric,
        score=of(answers, everyone),
        full_score=full_score,
        agreement=task.agreement(full, answers),
        score_ci=score_ci,
        drop_ci=drop_ci,
        gated_score=gated_score,
    )


def counted(trace: Trace, price: Prices) -> dict[str, float]:
    """Speed-ups in the currencies that need no clock."""
    return speedups(trace, price)
