"""What comes of training: scores of every exit, and the artifact under its final name."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

import exitkit
from exitkit.artifacts import artifact, model_card
from exitkit.artifacts.artifact import Artifact, Card, is_artifact
from exitkit.artifacts.plans import full_model
from exitkit.configuration.config import Training
from exitkit.data import fingerprints
from exitkit.data.fingerprints import Fingerprints
from exitkit.data.sources import Rows
from exitkit.data.splits import TrainingData, texts
from exitkit.engine.model import ExitModel
from exitkit.engine.replay import record
from exitkit.engine.stream import Batch
from exitkit.measuring import runs as measure
from exitkit.measuring.runs import Sample, gates_only, run_all
from exitkit.plugins import Registry
from exitkit.policy import has_gates
from exitkit.progress import bar
from exitkit.tasks import Answers, needs_labels
from exitkit.training.phases import Spent

log = logging.getLogger("exitkit")


def exit_logits(model: ExitModel, sample: Sample, title: str = "scoring exits") -> torch.Tensor:
    """Logits [E, U, C] of every exit on some rows."""
    model.eval()
    with bar(title, len(sample.rows)) as advance:

        def moving() -> Iterator[Batch]:
            for batch in sample.batches(64):
                yield batch
                advance(64)

        return record(model, moving()).logits


def score_exits(
    model: ExitModel, sample: Sample, metric: str, teacher: Answers | None = None
) -> list[dict[str, float]]:
    """Score of every exit on some rows, and how often it says what a teacher said, where there is one.

    Rows without labels only have scores that need none.
    """
    task, truth = sample.task, sample.truth
    answers = [sample.answers(logits) for logits in exit_logits(model, sample)]
    reference = truth if truth is not None and needs_labels(metric) else answers[-1]
    score, usual = task.metric(metric), task.metric(task.default_metric)
    found = []
    for number, (layer, given) in enumerate(zip(model.exits, answers, strict=True), start=1):
        one = {"exit": number, "layer": layer, "score": score(reference, given)}
        if truth is not None:
            one[task.default_metric] = usual(truth, given)
        if teacher is not None:
            one["teacher_agreement"] = task.agreement(teacher, given)
        found.append(one)
    return found


def score_gates(model: Artifact, registry: Registry, sample: Sample, metric: str) -> dict[str, Any]:
    """What a model with gates scores at its last exit with and without them, and how much they skip.

    `skip_rate` is the share of layers that a row skips, averaged over rows, as recipe `smartbert` aims at it; `skipped`
    what share of the tokens skips each layer, as work counts it. Empty for a model without gates.
    """
    name = next((name for name in model.model.probes if has_gates(registry.policy(name))), None)
    if name is None:
        return {}
    model.model.eval()
    batches = sample.batches(64)
    gated = run_all(model, batches, gates_only(name, model, registry), "scoring gates")
    full = run_all(model, batches, full_model(model, registry), "scoring without gates")
    scored = measure.score(sample.task, metric, sample.truth, *(sample.answers(one.logits) for one in (gated, full)))
    skipped = [1 - queries / gated.work.tokens for queries in gated.work.queries]
    _warn_of_idle_gates(skipped)
    return {
        "gated_score": scored.score,
        "ungated_score": scored.full_score,
        "skip_rate": 1 - float(gated.layers.float().mean()) / model.model.shape.layers,
        "skipped": skipped,
    }


def _warn_of_idle_gates(skipped: Sequence[float]) -> None:
    """Gates that treat all rows alike cost something and decide nothing."""
    for share, what in ((1.0, "every row"), (0.0, "no row")):
        layers = [str(layer) for layer, found in enumerate(skipped, start=1) if found == share]
        if layers:
            log.warning("the gates of these layers skip %s: %s", what, ", ".join(layers))


def report_of(
    model: ExitModel, data: TrainingData, name: str, metric: str, exits: list[dict[str, float]]
) -> dict[str, Any]:
    """The part of metrics.json that every way of training has, but for the time."""
    return {
        "task": model.task,
        "recipe": name,
        "metric": metric,
        "split": data.evaluation.origin.split + (" (set aside)" if data.evaluation.origin.indices else ""),
        "rows": len(data.evaluation),
        "pooling": model.pooling,
        "exits": exits,
    }


def speed(spent: Spent) -> dict[str, float]:
    """The part of metrics.json about time."""
    return {
        "train_seconds": round(spent.seconds, 3),
        "samples_per_second": round(spent.samples / max(spent.seconds, 1e-9), 3),
    }


def card_of(
    settings: Training,
    model: ExitModel,
    data: TrainingData,
    recipe: Mapping[str, Any],
    max_length: int,
    metric: str,
    probes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Card:
    """exitkit.yaml of a trained model.

    `recipe` says how it was trained and from what, `probes` what these are built with.
    """
    calibration = data.calibration
    chosen = {"epochs": settings.epochs, "seed": settings.seed}
    return Card(
        task=model.task,
        labels=data.task.labels,
        exits=model.exits,
        pooling=model.pooling,
        recipe={**recipe, **chosen, "rows": len(data.train)},
        max_length=max_length,
        metric=metric,
        data={**data.train.origin.as_dict(), "indices": None},
        calibration={**calibration.origin.as_dict(), "rows": len(calibration), "hash": calibration.hash()},
        scale=model.shape.scale,
        probes={name: dict(given) for name, given in (probes or {}).items() if name in model.probes},
        versions={
            "exitkit": exitkit.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    )


def learned_from(rows: Sequence[Rows | None], begun: Mapping[str, bool]) -> Fingerprints:
    """Of the texts of some rows, and of all that models have learned before.

    `begun`: names of the models that training starts from, or of teachers, and whether they can answer already.
    """
    before = [fingerprints.of_source(name, learned or is_artifact(Path(name))) for name, learned in begun.items()]
    return fingerprints.joined([*before, *(fingerprints.of_texts(texts(one)) for one in rows if one is not None)])


def publish(
    partial: Path,
    state: Path,
    output: Path,
    overwrite: bool,
    model: ExitModel,
    tokenizer: PreTrainedTokenizerBase,
    card: Card,
    report: dict[str, Any],
    learned: Fingerprints,
) -> None:
    """Write the artifact into the folder it grew in, drop the trainer's state, and give it its name.

    `learned` are the texts that it has learned from.
    """
    artifact.write(partial, model, tokenizer, card)
    with artifact.writing(partial):
        fingerprints.write(partial, learned)
    artifact.write_metrics(partial, report)
    model_card.write(partial, card, report, {})
    shutil.rmtree(state)
    artifact.publish(partial, output, overwrite)
