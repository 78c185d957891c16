"""Real runs over rows: what calibrate confirms with and benchmark reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from exitkit import metrics
from exitkit.artifact import Artifact
from exitkit.cost import Prices, speedups
from exitkit.data.batches import batches, encode
from exitkit.data.sources import Rows
from exitkit.data.splits import label_array
from exitkit.errors import ExitkitError
from exitkit.limits import Limits
from exitkit.loop import run
from exitkit.plugins import Registry
from exitkit.policy import has_gates
from exitkit.progress import bar
from exitkit.settings import Schedule, schedule
from exitkit.stream import Batch
from exitkit.tasks import Answers, Task, needs_labels
from exitkit.trace import Trace


def on_device(rows: Rows, model: Artifact, batch_size: int) -> list[Batch]:
    """Rows as padded batches on the model's device, without labels, in order."""
    encoded = encode(rows, model.tokenizer, model.card.max_length)
    made = []
    for batch in batches(encoded, model.tokenizer, batch_size):
        batch.pop("labels", None)
        made.append({name: tensor.to(model.model.device) for name, tensor in batch.items()})
    return made


def full_model(model: Artifact, registry: Registry) -> Schedule:
    """`fixed` with exit E: every layer, only the last head run."""
    shape = model.model.shape
    return schedule("fixed", registry.policy("fixed"), {"exit": shape.exits}, shape)


def gates_only(name: str, model: Artifact, registry: Registry) -> Schedule:
    """A policy with gates at its defaults, and nobody leaving before the last exit."""
    shape = model.model.shape
    return schedule(name, registry.policy(name), {}, shape, Limits(min_exit=shape.exits))


def gated_answers(name: str, model: Artifact, registry: Registry, rows: Sequence[Batch]) -> Answers | None:
    """What the last exit answers behind a policy's gates; None for a policy without gates."""
    if not has_gates(registry.policy(name)):
        return None
    return model.task.answers(run_all(model, rows, gates_only(name, model, registry), f"gates of {name}").logits)


def run_all(model: Artifact, rows: Sequence[Batch], plan: Schedule, title: str) -> Trace:
    """Answer all batches."""
    traces = []
    with bar(title, len(rows)) as advance:
        for batch in rows:
            traces.append(run(model.model, batch, plan))
            advance()
    trace = Trace.join(traces)
    if not torch.isfinite(trace.logits).all():
        raise ExitkitError(f"{model.folder}: the model answers NaN or infinite values; its weights are damaged.")
    return trace


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
    reference = full if truth is None or not needs_labels(metric) else truth

    def of(given: Answers, rows: npt.NDArray[np.int64]) -> float:
        return compare(reference[rows], given[rows])

    everyone = np.arange(len(answers))
    full_score = of(full, everyone)
    gated_score = None if gated is None else of(gated, everyone)
    best = full if gated is None or gated_score is None or gated_score <= full_score else gated
    return Scored(
        metric=metric,
        score=of(answers, everyone),
        full_score=full_score,
        agreement=task.agreement(full, answers),
        score_ci=metrics.interval(lambda rows: of(answers, rows), len(answers)),
        drop_ci=metrics.interval(lambda rows: of(best, rows) - of(answers, rows), len(answers)),
        gated_score=gated_score,
    )


def truth_of(rows: Rows) -> Answers | None:
    """Labels as the task stores them, or None for unlabelled rows."""
    return label_array(rows) if rows.task else None


def counted(trace: Trace, price: Prices) -> dict[str, float]:
    """Speed-ups in the currencies that need no clock."""
    return speedups(trace, price)
