"""The phases of a recipe, one after the other; those that an interrupted run finished are not run again."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, TrainingArguments

from exitkit.configuration import runtime
from exitkit.configuration.config import Training
from exitkit.data.batches import encode, present
from exitkit.data.sources import Rows
from exitkit.engine.model import ExitModel
from exitkit.errors import UsageError
from exitkit.progress import bar
from exitkit.recipe import Phase, Recipe
from exitkit.tasks import MultiLabel, Tagging, Task
from exitkit.training.adversarial import FastGradient
from exitkit.training.partial import finish_phase, finished_phase, whole_checkpoint
from exitkit.training.trainer import arguments, run_phase
from exitkit.training.tutor import Tutor

log = logging.getLogger("exitkit")


@dataclass(frozen=True)
class Job:
    """All that stays the same from phase to phase."""

    model: ExitModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    rows: Rows
    task: Task
    max_length: int
    weights: torch.Tensor | None  # [C] of the classes
    settings: Training
    device: torch.device
    unlabelled: Rows | None = None  # more rows for phases that need no labels
    tutor: Tutor | None = None  # in distillation; every phase then gets all rows
    solved: npt.NDArray[np.bool_] | None = None  # [N] what the recipe's judges say of the rows


@dataclass(frozen=True)
class Spent:
    """What training took, parts of an interrupted run included."""

    samples: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.samples + other.samples, self.seconds + other.seconds)


def check(job: Job, phases: Sequence[Phase]) -> None:
    """Raise UsageError for phases that cannot be run with these settings, before anything is written."""
    names = [phase.name for phase in phases]
    for phase in phases:
        if names.count(phase.name) > 1:
            raise UsageError(f"the recipe has two phases called '{phase.name}'.")
        if not any(group.parameters for group in phase.groups):
            raise UsageError(
                f"phase '{phase.name}' has nothing to train: the model has no exit before the last. Give --exits more "
                "layers, or use another recipe."
            )
        _arguments(job, phase, Path(phase.name))


def run_phases(job: Job, phases: Sequence[Phase], folder: Path) -> Spent:
    """Train what is left of the phases.

    Args:
        job: model, rows and settings.
        phases: in their order.
        folder: the trainer's own state, a folder per phase.

    Raises:
        ExitkitError: training diverged.
    """
    encoded = _encoded(job, job.rows) if job.tutor is None else all_rows(job)
    if job.solved is not None:
        encoded = Dataset(encoded.data.table.append_column("solved", pa.array(job.solved)))
    encoded.set_format("python")
    samples = seconds = 0.0
    for phase in phases:
        state = folder / phase.name
        spent = finished_phase(job.model, state)
        if spent is not None:
            log.info("phase '%s' is done already", phase.name)
        else:
            bare = phase.label_free and job.tutor is None
            spent = _run(job, phase, state, _without_labels(job, encoded) if bare else encoded)
            finish_phase(job.model, state, spent)
        samples += spent["samples"]
        seconds += spent["seconds"]
    return Spent(samples, seconds)


def all_rows(job: Job) -> Dataset:
    """Training rows and then unlabelled ones, numbered (`row`) for the tutor.

    `labels` is there when any row has one, and `labelled` when not all have.
    """
    parts = [_encoded(job, rows) for rows in (job.rows, job.unlabelled) if rows is not None]
    if "labels" in parts[0].column_names and len(parts) > 1:
        taught, bare = parts
        kind = taught.data.schema.field("labels").type
        bare = Dataset(bare.data.table.append_column("labels", pa.array(_blank(job.task, bare), kind)))
        marks = [pa.array([mark] * len(part), pa.int8()) for mark, part in ((1, taught), (0, bare))]
        parts = [
            Dataset(part.data.table.append_column("labelled", mark))
            for part, mark in zip((taught, bare), marks, strict=True)
        ]
    table = pa.concat_tables([part.data.table for part in parts])
    return Dataset(table.append_column("row", pa.array(range(table.num_rows), pa.int64())))


def _blank(task: Task, bare: Dataset) -> list[Any]:
    """Labels of rows without labels; they mean nothing, as `labelled` says."""
    if isinstance(task, Tagging):
        return [[0] * len(present(owners)) for owners in bare["words"][:]]
    return [[0] * task.outputs if isinstance(task, MultiLabel) else 0] * len(bare)


def _encoded(job: Job, rows: Rows) -> Dataset:
    return encode(rows, job.tokenizer, job.max_length, isinstance(job.task, Tagging))


def _without_labels(job: Job, encoded: Dataset) -> Dataset:
    """Training rows and unlabelled ones, without labels."""
    parts = [encoded.remove_columns("labels")]
    if job.unlabelled is not None:
        parts.append(_encoded(job, job.unlabelled))
    joined = concatenate_datasets(parts)
    joined.set_format("python")
    return joined


def _run(job: Job, phase: Phase, state: Path, encoded: Dataset) -> dict[str, float]:
    settings = job.settings
    args = _arguments(job, phase, state)
    last = whole_checkpoint(state) if settings.resume else None
    if last:
        log.info("phase '%s' goes on from step %s", phase.name, last.name.removeprefix("checkpoint-"))
    per_step = args.train_batch_size * args.gradient_accumulation_steps
    steps = -(-len(encoded) // per_step) * phase.epochs
    if args.save_steps < 1:  # transformers would compare the fraction with the number in a checkpoint, and warn
        args.save_steps = math.ceil(args.save_steps * math.ceil(steps))
    adversary = FastGradient(settings.adversarial_epsilon) if settings.adversarial == "fgm" else None
    started = time.perf_counter()
    if job.tutor is not None:
        job.tutor.prepare(phase.name)
    with bar(f"training ({phase.name})", round(steps)) as advance:
        report = run_phase(
            job.model,
            job.recipe,
            phase,
            args,
            encoded,
            job.tokenizer,
            advance,
            last,
            job.task,
            job.weights,
            adversary,
            job.tutor,
        )
    samples = report["train_samples_per_second"] * report["train_runtime"]
    return {"samples": samples, "seconds": time.perf_counter() - started}


def _arguments(job: Job, phase: Phase, state: Path) -> TrainingArguments:
    settings = job.settings
    return arguments(
        state,
        phase,
        seed=settings.seed,
        bf16=runtime.training_bf16(settings, job.device),
        device=job.device,
        extra=settings.training,
    )
