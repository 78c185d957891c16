"""What comes of training: scores of every exit, and the artifact under its final name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

import exitkit
from exitkit import artifact, model_card
from exitkit.artifact import Card
from exitkit.config import Training
from exitkit.data.batches import batches, encode
from exitkit.data.sources import Rows
from exitkit.data.splits import TrainingData, label_array
from exitkit.model import ExitModel
from exitkit.progress import bar
from exitkit.replay import record
from exitkit.tasks import Answers, Task, needs_labels
from exitkit.training.phases import Spent


def exit_logits(
    model: ExitModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    max_length: int,
    device: torch.device,
    title: str = "scoring exits",
) -> torch.Tensor:
    """Logits [E, N, C] of every exit on some rows."""
    encoded = encode(rows, tokenizer, max_length)
    model.eval()
    with bar(title, len(rows)) as advance:

        def padded() -> Iterator[dict[str, torch.Tensor]]:
            for batch in batches(encoded, tokenizer, 64):
                batch.pop("labels", None)
                yield {name: tensor.to(device) for name, tensor in batch.items()}
                advance(64)

        return record(model, padded()).logits


def score_exits(
    model: ExitModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    max_length: int,
    metric: str,
    device: torch.device,
    task: Task,
    teacher: Answers | None = None,
) -> list[dict[str, float]]:
    """Score of every exit on some rows, and how often it says what a teacher said, where there is one.

    Rows without labels only have scores that need none.
    """
    answers = task.answers(exit_logits(model, tokenizer, rows, max_length, device))
    truth = None if rows.task is None else label_array(rows)
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
) -> Card:
    """exitkit.yaml of a trained model; `recipe` says how it was trained, and from what."""
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
        versions={
            "exitkit": exitkit.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    )


def publish(
    partial: Path,
    state: Path,
    output: Path,
    model: ExitModel,
    tokenizer: PreTrainedTokenizerBase,
    card: Card,
    report: dict[str, Any],
) -> None:
    """Write the artifact into the folder it grew in, drop the trainer's state, and give it its name."""
    artifact.write(partial, model, tokenizer, card)
    artifact.write_metrics(partial, report)
    model_card.write(partial, card, report, {})
    shutil.rmtree(state)
    artifact.publish(partial, output)
