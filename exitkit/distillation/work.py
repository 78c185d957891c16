"""A run of `exitkit distill` that has been checked: teachers, student, rows and method fit together."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, set_seed

from exitkit.configuration import runtime
from exitkit.configuration.config import Choice, DistillConfig
from exitkit.data.batches import encode, limit, present
from exitkit.data.columns import Columns, LabelUse
from exitkit.data.sources import Rows, read
from exitkit.data.splits import TrainingData, label_array, training_and_calibration
from exitkit.distillation import fit
from exitkit.distillation.fit import Fit
from exitkit.distillation.student import Student, check_tables, new_student, students_of
from exitkit.distillation.teacher import Teacher, load_encoder, load_teachers
from exitkit.distiller import Distiller, Reads, Students
from exitkit.engine.model import ExitModel
from exitkit.errors import UsageError
from exitkit.measuring.runs import Sample
from exitkit.plugins import Registry, installed
from exitkit.recipe import Phase
from exitkit.tasks import Answers, Regression, Tagging, Task, needs_labels
from exitkit.training import parity
from exitkit.training.options import build, phases_of
from exitkit.training.outcome import exit_logits
from exitkit.training.partial import TRAINING
from exitkit.training.phases import Job, check
from exitkit.training.start import content_of
from exitkit.training.train import class_weights, unlabelled_rows

log = logging.getLogger("exitkit")

SEARCH = "search"
ANY_MAP = "uniform"  # stands in until the search has found one


@dataclass(frozen=True)
class Plan:
    """A method on a teacher and a student."""

    name: str
    method: Distiller
    phases: Sequence[Phase]
    reads: dict[str, Reads]  # by phase

    @property
    def tokenwise(self) -> bool:
        """Whether any phase looks into the teacher token by token."""
        return any(of_phase.tokenwise for of_phase in self.reads.values())


@dataclass(frozen=True)
class LearnedWords:
    """How many words the rows to learn from have."""

    learned: int  # those that the student and all teachers see
    lost: int  # those that have no token in one of them: they enter no loss


@dataclass(frozen=True)
class Work:
    """A run that has been checked: nothing has been trained or written."""

    settings: DistillConfig
    plan: Plan
    teachers: Sequence[Teacher]
    student: Student
    data: TrainingData
    sample: Sample  # rows that the student's exits are scored on
    metric: str
    said: Answers  # the teachers' of the rows that exits are scored on
    job: Job
    inner: Teacher | None  # who is looked into, if not the teacher
    encoded: Sequence[Dataset]  # all rows to learn from, as each teacher's tokenizer, and then the inner's, has them
    size: Fit | None  # where it follows from a speed-up
    words: LearnedWords | None  # of the rows to learn from, in tagging
    begun: str | None  # content of the student that `--student` gives, before it has learned anything

    @property
    def sized(self) -> DistillConfig:
        """The settings with the student's size in them."""
        return self.settings if self.size is None else self.size.settings(self.settings)

    def content(self) -> dict[str, str]:
        """Content hashes of what a resumed run must find again."""
        found = {
            "training rows": self.job.rows.hash(),
            "teachers": " ".join(teacher.content(how_it_reads=True) for teacher in self.teachers),
            **({} if self.inner is None else {"weights of the model that is looked into": self.inner.content(True)}),
            **({} if self.begun is None else {"weights of --student": self.begun}),
        }
        return found if self.job.unlabelled is None else {**found, "unlabelled rows": self.job.unlabelled.hash()}


def checked(settings: DistillConfig, partial: Path, on_calibration: bool = False) -> Work:
    """Everything that a run needs, loaded and found to fit together; nothing is written.

    Args:
        settings: of the run.
        partial: where a resumed run finds what it had settled on.
        on_calibration: score exits on the rows set aside for calibration.

    Raises UsageError: it does not.
    """
    registry, device = installed(), runtime.device(settings)
    name, method, epochs = build("method", _with_layer_map(settings, registry), registry.distiller)
    teachers = load_teachers(settings.teacher, registry, device, settings.max_length)
    data = _data(settings, teachers[0])
    if on_calibration:
        data = replace(data, evaluation=data.calibration)
    unlabelled = unlabelled_rows(settings.unlabelled if settings.data is not None else None, data)
    metric = _metric(settings.metric, data)
    if settings.class_weights is not None and data.train.task is None:
        raise UsageError("--class-weights: not every row has a label, so that there are no classes to weigh.")
    weights = class_weights(settings.class_weights, data.train)
    said = _teacher_answers(teachers, data.evaluation, data.task, device)
    inner = _inner(method, data.task, registry, device, settings.max_length)
    students = None if settings.student is not None else students_of(method, teachers[0], registry)
    size = _size(settings, partial, teachers[0], students, data, registry)
    sized = settings if size is None else size.settings(settings)
    set_seed(settings.seed)
    student = new_student(sized, teachers[0], students, data.task, _scale(data, said), registry)
    if settings.student is not None:
        check_tables(settings.student, student, data.train.pair or (unlabelled is not None and unlabelled.pair))
    for taking_part in (student.model, *(teacher.model for teacher in teachers)):
        parity.check(taking_part)
    plan = _plan(name, method, epochs, settings, student, teachers, inner, registry)
    longest, teachers = _lengths(settings, student, teachers)
    model, tokenizer = student.model.to(device), student.tokenizer
    job = Job(model, tokenizer, method, data.train, data.task, longest, weights, settings, device, unlabelled)
    check(job, plan.phases)
    encoded = [_encoded(job, one.tokenizer, one.max_length) for one in (*teachers, *([] if inner is None else [inner]))]
    words = None
    if plan.tokenwise or isinstance(data.task, Tagging):
        own = _encoded(job, tokenizer, longest)
        if plan.tokenwise:
            looked_into = 0 if inner is None else len(teachers)
            _check_positions(plan.name, own, encoded[looked_into], inner or teachers[0])
        words = _words((data.train, unlabelled), [own, *encoded]) if isinstance(data.task, Tagging) else None
    sample = Sample(data.evaluation, tokenizer, longest, data.task, device)
    begun = None if settings.student is None else content_of(model.stock, tokenizer)
    return Work(settings, plan, teachers, student, data, sample, metric, said, job, inner, encoded, size, words, begun)


def _inner(
    method: Distiller, task: Task, registry: Registry, device: torch.device, max_length: int | None
) -> Teacher | None:
    """The model that a method looks into in the place of its teacher."""
    option = method.looks_into
    source = None if option is None else getattr(method, option)
    return load_encoder(str(source), task, registry, device, max_length, f"method.{option}") if source else None


def _size(
    settings: DistillConfig,
    partial: Path,
    teacher: Teacher,
    students: Students | None,
    data: TrainingData,
    registry: Registry,
) -> Fit | None:
    """What a target makes of the student: measured, or as an interrupted run has it."""
    if settings.target_speedup is None or students is None:
        return None
    before = fit.read(partial / TRAINING) if settings.resume else None
    return before or fit.fit(settings, teacher, students, data.train, data.task, registry)


def _lengths(settings: DistillConfig, student: Student, teachers: list[Teacher]) -> tuple[int, list[Teacher]]:
    """How many tokens of a row the student reads: no more than its teachers, unless asked.

    Teachers who share its tokenizer read no more than it does, so that both see the same tokens.
    """
    longest = limit(student.tokenizer, student.model.stock.config, settings.max_length)
    if settings.max_length is None:
        longest = min(longest, *(teacher.max_length for teacher in teachers))
    return longest, [
        replace(teacher, max_length=min(teacher.max_length, longest))
        if teacher.tokenizer is student.tokenizer
        else teacher
        for teacher in teachers
    ]


def _with_layer_map(settings: DistillConfig, registry: Registry) -> Choice:
    """The method as it was chosen; `--layer-map` is one of its options, where it has such a one."""
    choice = settings.method
    if settings.layer_map is None or len(choice.name) != 1:
        return choice
    stands_for = ANY_MAP if settings.layer_map == SEARCH else settings.layer_map
    method = registry.distiller(choice.name[0])
    if "layer_map" not in {field.name for field in dataclasses.fields(method)}:  # type: ignore[arg-type]
        raise UsageError(
            f"--layer-map {settings.layer_map}: method '{choice.name[0]}' compares no layers; method 'layers' does."
        )
    return Choice(name=choice.name, **{**choice.options, "layer_map": stands_for})


def _data(settings: DistillConfig, teacher: Teacher) -> TrainingData:
    """The rows, with their labels, if they have any, as the teacher orders them."""
    if settings.task not in (None, teacher.task.kind):
        raise UsageError(f"--task {settings.task}: --teacher {teacher.source} is for {teacher.task.kind}.")
    columns = Columns(settings.text_column, settings.pair_column, settings.label_column)
    source, use = settings.data, _use(settings)
    seen = read(source, "train", columns, settings.task, use_labels=use) if source is not None else None
    task = _task(teacher, None if seen is None else seen.task, settings.label_names)
    found = training_and_calibration(
        source if source is not None else settings.unlabelled,
        columns,
        settings.seed,
        settings.max_train_samples,
        task,
        use,
    )
    if found.train.task is None and use == "optional":
        log.info("not every row has a label: the student learns from the teacher alone")
    return found


def _use(settings: DistillConfig) -> LabelUse:
    if settings.data is None:
        return "ignored"
    return "needed" if settings.label_column is not None else "optional"


def _task(teacher: Teacher, seen: Task | None, names: Sequence[str] | None) -> Task:
    """What the student will answer: the teacher's task, its labels under the data's names.

    Raises UsageError: the data are of another task, or have labels that the teacher does not know.
    """
    task = teacher.task
    if names is not None:
        if len(names) != len(task.labels) or len(set(names)) < len(names):
            raise UsageError(
                f"--label-names {','.join(names)}: the teacher has {len(task.labels)} labels "
                f"({', '.join(task.labels) or 'none'}); give one name for each, in their order."
            )
        task = replace(task, labels=tuple(names))
    if seen is None:
        return task
    if seen.kind != task.kind:
        raise UsageError(
            f"--teacher {teacher.source} is for {task.kind}, and the labels of --data look like {seen.kind}. Say how "
            f"they are meant (--task {task.kind}), give data of the teacher's task, or give the texts as --unlabelled."
        )
    if isinstance(task, Tagging) and isinstance(seen, Tagging) and seen.scheme not in (None, task.scheme):
        raise UsageError(
            f"--teacher {teacher.source} writes tags as {task.scheme or 'plain ones'} ({', '.join(task.labels)}), and "
            f"--data as {seen.scheme} ({', '.join(seen.labels)}). Rewrite the tags of one of them, or give the "
            "texts as --unlabelled, whose tags are not looked at."
        )
    unknown = sorted(set(seen.labels) - set(task.labels))
    if unknown:
        raise UsageError(
            f"--teacher {teacher.source} answers {', '.join(task.labels)}; the data has {', '.join(seen.labels)}. If "
            "these are the same classes under other names, say which is which: --label-names, with the data's labels "
            "in the order of the teacher's. Or give the texts as --unlabelled, whose labels are not looked at."
        )
    return task


def _metric(asked: str | None, data: TrainingData) -> str:
    """What scores are. Raises UsageError: it needs labels, and there are none."""
    there = data.evaluation.task is not None
    metric = asked or (data.task.default_metric if there else "agreement")
    data.task.metric(metric)  # refuse a misspelt label before training, not after
    if not there and needs_labels(metric):
        raise UsageError(f"--metric {metric} needs labels, and these rows have none. Use --metric agreement.")
    return metric


def _teacher_answers(teachers: Sequence[Teacher], rows: Rows, task: Task, device: torch.device) -> Answers:
    """What the teachers say together of some rows; of a word that one of them does not see, the fallback tag."""
    samples = [Sample(rows, teacher.tokenizer, teacher.max_length, task, device) for teacher in teachers]
    found = [
        teacher.logits(exit_logits(teacher.model, sample, "scoring the teacher")[-1])
        for teacher, sample in zip(teachers, samples, strict=True)
    ]
    words = [sample.words.seen for sample in samples if sample.words is not None]
    if not words:
        return samples[0].answers(torch.stack(found).mean(dim=0))
    common = reduce(np.intersect1d, words)
    found = [logits[torch.from_numpy(np.isin(own, common))] for logits, own in zip(found, words, strict=True)]
    return samples[0].answers(torch.stack(found).mean(dim=0), common)


def _scale(data: TrainingData, said: Answers) -> float:
    """In regression the standard deviation of the labels, or of the teacher's answers where there are none."""
    if not isinstance(data.task, Regression):
        return 1.0
    return float(np.std(said if data.train.task is None else label_array(data.train)))


def _plan(
    name: str,
    method: Distiller,
    epochs: dict[str, float],
    settings: DistillConfig,
    student: Student,
    teachers: Sequence[Teacher],
    inner: Teacher | None,
    registry: Registry,
) -> Plan:
    """Put the method on the models. Raises UsageError: it cannot teach this, or not by these teachers."""
    model, teacher = student.model, (inner or teachers[0]).model
    why = type(method).refuses(model.shape)
    if why is not None:
        raise UsageError(f"--method {name} is not for {model.shape.task}: {why}.")
    for part, module in method.scaffold(model.shape, teacher.shape).items():
        model.scaffold[part] = module
    method.prepare(model)
    phases = phases_of("method", name, method, model, settings.epochs, epochs, False)
    reads = {phase.name: method.reads(phase.name, model.shape, teacher.shape) for phase in phases}
    if inner is None and len(teachers) > 1 and any(of_phase.inside for of_phase in reads.values()):
        raise UsageError(
            f"--method {name} looks into its teacher, whose layers cannot be averaged with those of another. Name one "
            "--teacher, or use --method logits."
        )
    for of_phase in reads.values():
        if of_phase.attention:
            for looked_into in (teacher, model):
                _tells_attention(name, method, looked_into, registry)
    return Plan(name, method, phases, reads)


def _tells_attention(name: str, method: Distiller, model: ExitModel, registry: Registry) -> None:
    if not model.encoder.cuts:
        without = "Without attention: --set method.attention=false." if hasattr(method, "attention") else ""
        known = ", ".join(one for one in registry.names("model type") if registry.encoder(one).cuts)
        raise UsageError(
            f"--method {name} compares what attention multiplies, and family '{model.stock.config.model_type}' does "
            f"not tell that; these do: {known}. {without or 'Use --method logits.'}"
        )


def _encoded(job: Job, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """All rows to learn from, in their order, as a tokenizer has them."""
    tagging = isinstance(job.task, Tagging)
    there = [rows for rows in (job.rows, job.unlabelled) if rows is not None]
    parts = [encode(rows, tokenizer, max_length, tagging) for rows in there]
    parts = [part.remove_columns([name for name in part.column_names if name == "labels"]) for part in parts]
    return concatenate_datasets(parts)


def _words(rows: Sequence[Rows | None], encoded: Sequence[Dataset]) -> LearnedWords:
    """Count the words of rows that all who encoded them see. Raises UsageError: there is none."""
    there = [part for part in rows if part is not None]
    total = sum(len(one) for part in there for one in (label_array(part) if part.task else part.data["words"][:]))
    learned = sum(
        len(set.intersection(*(set(present(owners)) for owners in of_row)))
        for of_row in zip(*(one["words"][:] for one in encoded), strict=True)
    )
    if not learned:
        raise UsageError(
            f"none of the {total} words to learn from has a token both in the student and in every teacher. Give rows "
            "with words, or a larger --max-length."
        )
    if learned < total:
        log.warning(
            "%d of the %d words to learn from have no token in the student or in a teacher (cut off by --max-length, "
            "or unknown to a tokenizer): nothing is learned of them",
            total - learned,
            total,
        )
    return LearnedWords(learned, total - learned)


def _check_positions(method: str, own: Dataset, taught: Dataset, teacher: Teacher) -> None:
    """Raise UsageError: token by token lessons, and the student has other tokens than the teacher."""
    for row, (ours, theirs) in enumerate(zip(own["input_ids"][:], taught["input_ids"][:], strict=True), start=1):
        if ours != theirs:
            raise UsageError(
                f"--method {method} compares states token by token, but the student and the teacher "
                f"{teacher.source} cut texts into different tokens (row {row}: {len(ours)} and {len(theirs)}). Give a "
                "student with the teacher's tokenizer, the same --max-length for both, or use --method logits."
            )
