"""What a student is and what it starts from: a piece of the teacher, a config, or a model of its own."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from exitkit.artifacts import pretrained
from exitkit.configuration.config import DistillConfig
from exitkit.data.batches import NO_LABEL, batches, encode
from exitkit.data.sources import Rows
from exitkit.distillation.extraction import Size, all_of, choose, extract, importance, misfit, size_of, why_not
from exitkit.distillation.layer_map import evenly
from exitkit.distillation.teacher import Teacher
from exitkit.distiller import Distiller, Students
from exitkit.engine.encoders.base import Encoder
from exitkit.engine.heads import choose_pooling
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Batch
from exitkit.errors import UsageError
from exitkit.plugins import Registry
from exitkit.progress import bar
from exitkit.tasks import Tagging, Task
from exitkit.training.checkpoint import check_config, check_folder, most_tokens, most_types
from exitkit.training.start import Start, starting_model

log = logging.getLogger("exitkit")

TOKENS, NONE = "tokens", "none"  # ways to start that cut nothing out of the teacher

MOST_JUDGED = 2000
"""Rows that parts of the teacher are judged on."""


@dataclass(frozen=True)
class Student:
    """A student before it has learned anything."""

    model: ExitModel
    tokenizer: PreTrainedTokenizerBase
    extract: str  # "impt", "rand", TOKENS or NONE: what is still to be written into it

    @property
    def is_piece(self) -> bool:
        """Whether it is cut out of its teacher."""
        return self.extract not in (TOKENS, NONE)


def students_of(method: Distiller, teacher: Teacher, registry: Registry) -> Students:
    """The students that a method builds or, where it builds none, smaller models of the teacher's family.

    Of the latter, half of the layers and all of the width is what they have if nothing is said. Raises UsageError: a
    family that nothing can be cut out of.
    """
    built = method.students(teacher.model)
    if built is not None:
        return built
    encoder = teacher.model.encoder
    _can_cut(type(encoder), teacher, registry)
    theirs = size_of(teacher.model.stock.config, type(encoder))
    per_head = theirs.width // theirs.heads

    def config(layers: int, width: int) -> PreTrainedConfig:
        inner = max(1, round(theirs.inner * width / theirs.width))
        return encoder.resized(layers, width, width // per_head, inner)

    return Students(
        config=config,
        layers=-(-theirs.layers // 2),
        most_layers=theirs.layers,
        width=theirs.width,
        step=per_head,
        why=f"the teacher's attention heads have {per_head} features, and a student has whole heads",
        pieces=True,
    )


def new_student(
    settings: DistillConfig,
    teacher: Teacher,
    students: Students | None,
    task: Task,
    scale: float,
    registry: Registry,
) -> Student:
    """Build the student that a configuration asks for; see `start` for its weights.

    Args:
        settings: of the run.
        teacher: that it may be cut out of.
        students: what a student of a size is; None where `settings.student` says what it is.
        task: what it answers.
        scale: in regression, the standard deviation of the training labels.
        registry: knows the families.

    Raises UsageError: a size that cannot be had, or a family that nothing can be cut out of.
    """
    source = settings.student
    pooling = teacher.whole.pooling if settings.pooling == "auto" else choose_pooling(settings.pooling, task.kind)
    exits = [] if settings.no_exits else settings.exits
    if source is not None:
        check_folder(source, "--student")
    if source is not None and not _is_config(Path(source)):
        if settings.extract not in (None, NONE):
            raise UsageError(
                f"--extract {settings.extract}: the student {settings.student} has weights of its own. Leave it out, "
                "or give a config.json as --student."
            )
        begun = starting_model(source, task, exits, pooling, registry, scale, "--student", teacher.tokenizer)
        if begun.misfit is not None:
            log.warning("the student is a fine-tuned classifier, and %s: it gets a new head", begun.misfit)
        _order_outputs(begun, task)
        return Student(begun.model, begun.tokenizer, NONE)
    if students is not None:
        config = resized(settings, students)
    else:
        assert source is not None
        config = _config(Path(source), registry)
    encoder = registry.encoder(config.model_type)
    check_config(source or teacher.source, config, encoder, "--student" if source else "--teacher")
    stock = _built(source, config, task)
    how = _extraction(settings, stock, students, encoder, teacher)
    every = range(1, len(encoder(stock).blocks) + 1)
    student = Student(
        ExitModel(stock, encoder, every if exits is None else exits, pooling, scale), teacher.tokenizer, how
    )
    why = misfit(student.model, teacher.model) if student.is_piece else None
    if why is not None and source is not None and settings.extract is None:
        return replace(student, extract=_less(stock, teacher, why))
    if why is not None:
        raise UsageError(
            f"the student cannot be cut out of the teacher: {why} Or start from random weights: --extract none."
        )
    return student


def bare(config: PreTrainedConfig, encoder: type[Encoder], task: Task) -> ExitModel:
    """A model with random weights and its last exit only, to be timed."""
    stock = _random(config, task)
    return ExitModel(stock, encoder, [len(encoder(stock).blocks)], "mean").eval()


def _random(config: PreTrainedConfig, task: Task) -> PreTrainedModel:
    return pretrained.new_stock(task.kind, _for_task(config, task))


def start(student: Student, teacher: Teacher, rows: Rows, task: Task, seed: int) -> None:
    """Write what the student starts with of its teacher into it."""
    model, whole = student.model, teacher.whole
    if student.extract == TOKENS:
        with torch.no_grad():
            _table(model.stock).copy_(_table(whole.stock))
    if not student.is_piece:
        return
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


def resized(settings: DistillConfig, students: Students) -> PreTrainedConfig:
    """The config of a student of the size asked for. Raises UsageError: no student has such a width."""
    width = settings.student_width or students.width
    if width % students.step:
        raise UsageError(f"--student-width {width}: {students.why}. Use a multiple of {students.step}.")
    return students.config(settings.student_layers or students.layers, width)


def _can_cut(encoder: type[Encoder], teacher: Teacher, registry: Registry) -> None:
    if not encoder.cuts:
        known = ", ".join(name for name in registry.names("model type") if registry.encoder(name).cuts)
        raise UsageError(
            f"--teacher {teacher.source}: no smaller model can be cut out of the family "
            f"'{teacher.model.stock.config.model_type}'; out of these it can: {known}. Give a model or a config.json "
            "as --student."
        )


def _extraction(
    settings: DistillConfig,
    stock: PreTrainedModel,
    students: Students | None,
    encoder: type[Encoder],
    teacher: Teacher,
) -> str:
    """How the student starts. Raises UsageError: with something of the teacher that does not fit."""
    other = other_tables(stock, teacher) if settings.extract == TOKENS else None
    if other is not None:
        raise UsageError(
            f"--extract tokens: {other} Give the student one of that size, or start from random weights: "
            "--extract none."
        )
    if settings.extract in (TOKENS, NONE):
        return settings.extract
    why = _no_piece(stock.config, students, encoder, teacher)
    if why is None:
        return settings.extract or "impt"
    if settings.extract is None and not (students is not None and students.pieces):
        return _less(stock, teacher, why if students is None else None)
    said = [
        f"--{name.replace('_', '-')} {value}"
        for name in ("student_layers", "student_width", "student", "extract")
        if (value := getattr(settings, name)) is not None
    ]
    raise UsageError(
        f"{' '.join(said)}: {why} Or start with its token embeddings alone, --extract tokens, or from random weights, "
        "--extract none."
    )


def _less(stock: PreTrainedModel, teacher: Teacher, why: str | None) -> str:
    """What a student starts with that is no piece of its teacher; `why` it is none goes into a warning."""
    how = TOKENS if other_tables(stock, teacher) is None else NONE
    if why is not None:
        but = ", but for its teacher's token embeddings" if how == TOKENS else ""
        log.warning("the student starts from random weights%s: %s", but, why)
    return how


def _built(source: str | None, config: PreTrainedConfig, task: Task) -> PreTrainedModel:
    """A model with random weights. Raises UsageError: none can be built from the config that a user gave."""
    try:
        return _random(config, task)
    except Exception as error:
        if source is None:
            raise
        raise UsageError(
            f"--student {source}: no model can be built from this config: {' '.join(str(error).split())[:300]}"
        ) from error


def check_tables(source: str, student: Student, pairs: bool) -> None:
    """Raise UsageError: its tokenizer has tokens, or for `pairs` of texts types, that it has no embedding for."""
    model, tokenizer = student.model, student.tokenizer
    rows, tokens = len(_table(model.stock)), most_tokens(tokenizer)
    if tokens > rows:
        raise UsageError(
            f"--student {source}: it has embeddings for {rows} tokens, and the tokenizer that it reads with {tokens}. "
            f"Set vocab_size to at least {tokens}, or give a model with a tokenizer of its own."
        )
    known = getattr(model.stock.config, "type_vocab_size", None)
    types = most_types(tokenizer) if pairs else 1
    if known and types > known:
        raise UsageError(
            f"--student {source}: its type_vocab_size is {known}, and the tokenizer that it reads with gives a pair of "
            f"texts {types} types. Set type_vocab_size to {types}."
        )


def _order_outputs(begun: Start, task: Task) -> None:
    """Put the outputs of a classifier in the order of the task's labels; make new ones if it has other labels."""
    theirs = begun.labels
    if theirs in ((), task.labels):
        return
    head = begun.model.encoder.stock_head_modules()
    last = [layer for part in head for layer in part.modules() if isinstance(layer, nn.Linear)][-1]
    if sorted(theirs) != sorted(task.labels):
        log.warning(
            "the student's classifier is for the labels %s, and starts anew for %s",
            ", ".join(theirs),
            ", ".join(task.labels),
        )
        last.reset_parameters()
        return
    order = [theirs.index(label) for label in task.labels]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.copy_(parameter[order].clone())


def _no_piece(
    config: PreTrainedConfig, students: Students | None, encoder: type[Encoder], teacher: Teacher
) -> str | None:
    """Why a student is no piece of its teacher, as a sentence; None when it can be one."""
    theirs = teacher.model.stock.config
    if students is not None and not students.pieces:
        return f"this method builds students of the family '{config.model_type}', which are no pieces of their teacher."
    if config.model_type != theirs.model_type:
        return f"the student is '{config.model_type}' and the teacher '{theirs.model_type}'."
    if not encoder.cuts:
        return f"nothing can be cut out of the family '{config.model_type}'."
    return why_not(size_of(config, encoder), size_of(theirs, encoder))


def other_tables(stock: PreTrainedModel, teacher: Teacher) -> str | None:
    """Why a student cannot have its teacher's token embeddings, as a sentence; None when it can."""
    ours, theirs = (list(_table(one).shape) for one in (stock, teacher.model.stock))
    return None if ours == theirs else f"the student's table of token embeddings is {ours}, and the teacher's {theirs}."


def _table(stock: PreTrainedModel) -> Tensor:
    """Token embeddings [V, d]."""
    table: Tensor = stock.get_input_embeddings().weight
    return table


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


def _config(path: Path, registry: Registry) -> PreTrainedConfig:
    if not path.exists():
        raise UsageError(f"--student {path}: there is no such file.")
    try:
        return pretrained.load_config(path, registry, local=True)
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
    if student.is_piece:
        found["from_layers"] = list(evenly(sizes.layers, teacher.model.shape.layers))
    return found
