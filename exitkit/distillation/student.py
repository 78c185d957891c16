"""What a student is and what it starts from: a piece of the teacher, a config, or a model of its own."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from exitkit.config import DistillConfig
from exitkit.data.batches import NO_LABEL, batches, encode
from exitkit.data.sources import Rows
from exitkit.distillation.extraction import Size, all_of, choose, extract, importance, misfit, size_of, why_not
from exitkit.distillation.layer_map import evenly
from exitkit.distillation.teacher import Teacher
from exitkit.encoders.base import Encoder
from exitkit.errors import UsageError
from exitkit.heads import choose_pooling
from exitkit.model import ExitModel, stock_class
from exitkit.plugins import Registry
from exitkit.progress import bar
from exitkit.stream import Batch
from exitkit.tasks import Tagging, Task
from exitkit.training.start import starting_model

log = logging.getLogger("exitkit")

MOST_JUDGED = 2000
"""Rows that parts of the teacher are judged on."""


@dataclass(frozen=True)
class Student:
    """A student before it has learned anything."""

    model: ExitModel
    tokenizer: PreTrainedTokenizerBase
    extract: str  # "impt", "rand" or "none": what is still to be written into it


def new_student(settings: DistillConfig, teacher: Teacher, task: Task, scale: float, registry: Registry) -> Student:
    """Build the student that a configuration asks for; see `start` for its weights.

    Raises UsageError: a size that cannot be had, or a family that nothing can be cut out of.
    """
    pooling = teacher.whole.pooling if settings.pooling == "auto" else choose_pooling(settings.pooling, task.kind)
    exits = [] if settings.no_exits else settings.exits
    if settings.student is not None and not _is_config(Path(settings.student)):
        if settings.extract not in (None, "none"):
            raise UsageError(
                f"--extract {settings.extract}: the student {settings.student} has weights of its own. Leave it out, "
                "or give a config.json as --student."
            )
        begun = starting_model(settings.student, task, exits, pooling, registry, scale, "--student")
        return Student(begun.model, begun.tokenizer, "none")
    source = settings.student
    config = resized(settings, teacher, registry) if source is None else _config(Path(source))
    encoder = registry.encoder(config.model_type)
    how = _extraction(settings, config, encoder, teacher, registry)
    stock = _random(config, task)
    every = range(1, len(encoder(stock).blocks) + 1)
    model = ExitModel(stock, encoder, every if exits is None else exits, pooling, scale)
    why = None if how == "none" else misfit(model, teacher.model)
    if why is not None:
        raise UsageError(
            f"the student cannot be cut out of the teacher: {why} Or start from random weights: --extract none."
        )
    return Student(model, teacher.tokenizer, how)


def bare(config: PreTrainedConfig, encoder: type[Encoder], task: Task) -> ExitModel:
    """A model with random weights and its last exit only, to be timed."""
    stock = _random(config, task)
    return ExitModel(stock, encoder, [len(encoder(stock).blocks)], "mean").eval()


def _random(config: PreTrainedConfig, task: Task) -> PreTrainedModel:
    made: PreTrainedModel = stock_class(task.kind).from_config(_for_task(config, task), dtype=torch.float32)
    return made


def start(student: Student, teacher: Teacher, rows: Rows, task: Task, seed: int) -> None:
    """Write the piece of the teacher into the student, if it starts as one."""
    if student.extract == "none":
        return
    model, whole = student.model, teacher.whole
    ours = size_of(model.stock.config, type(model.encoder))
    theirs = size_of(whole.stock.config, type(whole.encoder))
    scores = None
    if student.extract == "impt" and not all_of(ours, theirs):
        chosen = np.random.default_rng(seed).permutation(len(rows))[:MOST_JUDGED]
        judged = rows.select(np.sort(chosen).tolist())
        scores = importance(teacher.model, _judged(judged, teacher), task)
    extract(model, whole, choose(ours, theirs, scores, seed))


def _judged(rows: Rows, teacher: Teacher) -> Iterator[tuple[Batch, Tensor | None]]:
    encoded = encode(rows, teacher.tokenizer, teacher.max_length, isinstance(teacher.task, Tagging))
    with bar("judging the teacher's parts", len(rows)) as advance:
        for batch in batches(encoded, teacher.tokenizer, 32):
            on_device = {name: tensor.to(teacher.model.device) for name, tensor in batch.items()}
            labels = on_device.pop("labels", None)
            yield on_device, labels if labels is None or "words" not in on_device else labels[labels != NO_LABEL]
            advance(len(on_device["input_ids"]))


def resized(settings: DistillConfig, teacher: Teacher, registry: Registry) -> PreTrainedConfig:
    """The teacher's config in the size asked for: half its layers and all of its width, if nothing is said."""
    encoder = teacher.model.encoder
    _can_cut(type(encoder), teacher, registry)
    theirs = size_of(teacher.model.stock.config, type(encoder))
    width = settings.student_width or theirs.width
    per_head = theirs.width // theirs.heads
    if width % per_head:
        raise UsageError(
            f"--student-width {width}: the teacher's attention heads have {per_head} features, and a student has whole "
            f"heads. Use a multiple of {per_head}."
        )
    layers = settings.student_layers or -(-theirs.layers // 2)
    inner = max(1, round(theirs.inner * width / theirs.width))
    return encoder.resized(layers, width, width // per_head, inner)


def _can_cut(encoder: type[Encoder], teacher: Teacher, registry: Registry) -> None:
    if not encoder.cuts:
        known = ", ".join(name for name in registry.names("model type") if registry.encoder(name).cuts)
        raise UsageError(
            f"--teacher {teacher.source}: no smaller model can be cut out of the family "
            f"'{teacher.model.stock.config.model_type}'; out of these it can: {known}. Give a model or a config.json "
            "as --student, and --extract none."
        )


def _extraction(
    settings: DistillConfig, config: PreTrainedConfig, encoder: type[Encoder], teacher: Teacher, registry: Registry
) -> str:
    """How the student starts. Raises UsageError: as a piece of the teacher, which it cannot be."""
    if settings.extract == "none":
        return "none"
    theirs = teacher.model.stock.config
    if config.model_type != theirs.model_type:
        why: str | None = f"the student is '{config.model_type}' and the teacher '{theirs.model_type}'."
    else:
        _can_cut(encoder, teacher, registry)
        why = why_not(size_of(config, encoder), size_of(theirs, encoder))
    if why is None:
        return settings.extract or "impt"
    if settings.student is not None and settings.extract is None:
        log.warning("the student starts from random weights: %s", why)
        return "none"
    said = [
        f"--{name.replace('_', '-')} {value}"
        for name in ("student_layers", "student_width", "student", "extract")
        if (value := getattr(settings, name)) is not None
    ]
    raise UsageError(f"{' '.join(said)}: {why} Or start from random weights: --extract none.")


def _for_task(config: PreTrainedConfig, task: Task) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.num_labels = task.outputs
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
    config.problem_type = task.problem_type
    config.architectures = None
    return config


def _is_config(path: Path) -> bool:
    """Whether it is a config without weights: a json file, or a folder with nothing else that is a model."""
    if path.suffix == ".json":
        return True
    return (path / "config.json").exists() and not any(path.glob("*.safetensors")) and not any(path.glob("*.bin"))


def _config(path: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--student {path}: no config that can be read: {' '.join(str(error).split())[:300]}"
        ) from None


def told(student: Student, teacher: Teacher) -> dict[str, object]:
    """What the student is, beside its teacher, as plain values."""
    model = student.model
    sizes: Size = size_of(model.stock.config, type(model.encoder))
    found: dict[str, object] = {
        **sizes.as_dict(),
        "parameters": sum(p.numel() for p in model.stock.parameters()),
        "extract": student.extract,
    }
    if student.extract != "none":
        found["from_layers"] = list(evenly(sizes.layers, teacher.model.shape.layers))
    return found
