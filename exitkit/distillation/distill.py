"""`exitkit distill`: a smaller model that learns from finished ones, with exits of its own."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from exitkit.configuration import notation, parsing
from exitkit.configuration.config import Choice, DistillConfig
from exitkit.data.splits import label_array
from exitkit.data.taken import taken
from exitkit.distillation import map_search
from exitkit.distillation.layer_map import text_of
from exitkit.distillation.lessons import Lessons
from exitkit.distillation.student import start
from exitkit.distillation.student import told as told_of_student
from exitkit.distillation.work import SEARCH, Work, checked
from exitkit.errors import UsageError
from exitkit.measuring.runs import told_of_words
from exitkit.process import outputs
from exitkit.tasks import needs_labels
from exitkit.training.outcome import card_of, learned_from, publish, report_of, score_exits, speed
from exitkit.training.partial import check_output, finish_phase, finished_phase, open_partial, same_run
from exitkit.training.phases import Spent, run_phases

log = logging.getLogger("exitkit")

PROXY = "student"  # of the search
KEPT = "_teacher"
START = "_start"  # stands among the phases: the student before its first


def distill(settings: DistillConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Make a student of one or more teachers and save it, as an artifact like any other.

    Args:
        settings: the configuration, or give its fields by name: `distill(teacher=..., data=..., output=...)`. `data`
            may be anything that `exitkit.data.sources.Source` names, in-memory data included.

    Returns:
        What is written to metrics.json: scores as from `train`, and what the method did.

    Raises:
        UsageError: a setting is missing or not allowed, or teacher, data and student do not fit each other.
        ExitkitError: data or models cannot be read, the disk is full, or training fails.
    """
    settings = settings or parsing.parse(DistillConfig, fields)
    parsing.require(settings, "teacher", "output")
    if settings.data is None and settings.unlabelled is None:
        raise UsageError("missing --data, or --unlabelled. Give it on the command line, or in the file of --config.")
    assert settings.output is not None
    output = outputs.target(settings.output, whole_folder=True)
    with outputs.held(output, "distill"):
        return _distill(settings, output)


def _distill(settings: DistillConfig, output: Path) -> dict[str, Any]:
    """Make the student in a folder that is held."""
    partial = _check_output(settings, output)
    searches = settings.layer_map == SEARCH
    work = checked(settings, partial)
    if label := _label(work):
        log.info("label: %s", label)
    folder = open_partial(partial, settings.resume)
    same_run(partial, settings, work.content())
    if work.size is not None:
        work.size.write(folder)
    if not searches:
        return _learn(work, partial, folder, output)
    found = _searched(work, folder / SEARCH)
    chosen = checked(_with_map(work.sized, text_of(found.layer_map)), partial)
    result = {"layer_map_search": found.as_dict()}
    return _learn(replace(chosen, size=work.size), partial, folder, output, result)


def _label(work: Work) -> str | None:
    """What the labels were taken for, where every row has one."""
    return None if work.data.train.task is None else taken(work.data.train, "as the teacher has it")


def _with_map(settings: DistillConfig, layer_map: str) -> DistillConfig:
    return settings.model_copy(update={"layer_map": layer_map})


def _searched(work: Work, folder: Path) -> map_search.Found:
    """The best layer map by students that learn little and are scored on rows that were set aside."""
    settings = work.sized
    folder.mkdir(exist_ok=True)

    def judge(layer_map: map_search.Map, seed: int) -> float:
        update = {
            "layer_map": text_of(layer_map),
            "seed": seed,
            "max_train_samples": min(settings.search_rows, len(work.data.train)),
            "epochs": settings.search_epochs,
            "method": Choice(name=settings.method.name, **_without_epochs(settings.method.options)),
            "unlabelled": None if settings.data is not None else settings.unlabelled,
            "cache": None,
        }
        proxy = checked(settings.model_copy(update=update), folder, on_calibration=True)
        shutil.rmtree(folder / PROXY, ignore_errors=True)
        (folder / PROXY).mkdir()
        exits, _, _ = _taught(proxy, folder / PROXY)
        shutil.rmtree(folder / PROXY)
        return worth(exits, needs_labels(proxy.metric))

    remembered = map_search.Remembered(judge, folder / map_search.FILE)
    student, teacher = work.student.model.shape.layers, work.teachers[0].model.shape.layers
    return map_search.search(
        remembered, student, teacher, settings.seed, settings.search_generations, settings.search_population
    )


def worth(exits: Sequence[Mapping[str, float]], labelled: bool) -> float:
    """Fitness of a student: the mean score of its exits; without labels how often they say what the teacher says.

    (Agreement as a metric is with the student's own last exit, which a student that always says the same has in full.)
    """
    return float(np.mean([one["score" if labelled else "teacher_agreement"] for one in exits]))


def _without_epochs(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a method without those of its phases."""
    return {key: value for key, value in options.items() if not isinstance(value, dict)}


def _learn(
    work: Work, partial: Path, folder: Path, output: Path, more: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Start the student, train it, and give it its name. Returns the report, with what is to stand there beside."""
    settings, student, data, job = work.settings, work.student, work.data, work.job
    exits, spent, lessons = _taught(work, folder)
    report = {
        **report_of(student.model, data, work.plan.name, work.metric, exits),
        **({"label": label} if (label := _label(work)) else {}),
        **told_of_words(work.sample),
        **speed(spent),
        **_did(work, lessons),
        **more,
    }
    options = dataclasses.asdict(work.plan.method)  # type: ignore[call-overload]
    recipe = {"name": work.plan.name, **options, "teachers": list(settings.teacher)}
    card = card_of(settings, student.model, data, recipe, job.max_length, work.metric)
    learned = learned_from([data.train, job.unlabelled], _begun(work))
    publish(partial, folder, output, settings.overwrite, student.model, student.tokenizer, card, report, learned)
    return report


def _begun(work: Work) -> dict[str, bool]:
    """The models that a student has something from, and whether they can answer: teachers do."""
    given = [work.settings.student, None if work.inner is None else work.inner.source]
    return {**{name: False for name in given if name is not None}, **dict.fromkeys(work.settings.teacher, True)}


def _taught(work: Work, folder: Path) -> tuple[list[dict[str, float]], Spent, Lessons]:
    """Train the student in a folder. Returns its exits' scores, what it took, and what it learned from."""
    settings, student, job = work.settings, work.student, work.job
    started = _start(work, folder / START)
    lessons = Lessons(
        work.teachers,
        work.encoded,
        student.model.encoder,
        work.plan.reads,
        settings.cache or folder / KEPT,
        notation.bytes_of(settings.cache_size),
        job.device,
        work.inner,
    )
    spent = run_phases(replace(job, tutor=lessons), work.plan.phases, folder)
    exits = score_exits(student.model, work.sample, work.metric, work.said)
    return exits, replace(spent, seconds=spent.seconds + started), lessons


def _check_output(settings: DistillConfig, output: Path) -> Path:
    """The folder to work in. Raises UsageError for anything that may not be touched, the teachers among it."""
    for source in settings.teacher:
        if Path(source).exists() and Path(source).resolve() == output.resolve():
            raise UsageError(f"--output {output} is the teacher; name another folder.")
    partial = check_output(output, settings.resume, settings.overwrite)
    for ours in (output, partial):
        if settings.cache is not None and settings.cache.resolve().is_relative_to(ours.resolve()):
            raise UsageError(f"--cache {settings.cache} is in {ours}, where the student grows; name another folder.")
    return partial


def _start(work: Work, state: Path) -> float:
    """Give the student its first weights; a resumed run reads them. Returns the seconds that it took."""
    found = finished_phase(work.student.model, state)
    if found is None:
        before = time.perf_counter()
        start(work.student, work.teachers[0], work.data.train, work.data.task, work.settings.seed)
        found = {"seconds": time.perf_counter() - before}
        finish_phase(work.student.model, state, found)
    return found["seconds"]


def _did(work: Work, lessons: Lessons) -> dict[str, Any]:
    """What the method did, as plain values."""
    plan, data, teachers = work.plan, work.data, work.teachers
    scored: dict[str, float] = {}
    if data.evaluation.task is not None and needs_labels(work.metric):
        scored["score"] = data.task.metric(work.metric)(label_array(data.evaluation), work.said)
    bare = len(data.train) if data.train.task is None else 0
    more = 0 if work.job.unlabelled is None else len(work.job.unlabelled)
    return {
        "method": plan.name,
        "options": dataclasses.asdict(plan.method),  # type: ignore[call-overload]
        "teachers": [
            {
                "teacher": teacher.source,
                "layers": teacher.model.shape.layers,
                "width": teacher.model.shape.width,
                "parameters": sum(p.numel() for p in teacher.model.stock.parameters()),
            }
            for teacher in teachers
        ],
        "teacher": scored,  # of all teachers together, on the rows that exits are scored on
        "student": {
            **told_of_student(work.student, teachers[0]),
            **({} if work.size is None else {"speedup": work.size.speedup()}),
        },
        "learned_from": {
            "labelled": len(data.train) - bare,
            "unlabelled": bare + more,
            **({} if work.words is None else {"words": work.words.learned, "words_lost": work.words.lost}),
        },
        "phases": [
            {
                "phase": phase.name,
                "epochs": phase.epochs,
                "answers": plan.reads[phase.name].answers,
                "hidden": [list(pair) for pair in plan.reads[phase.name].hidden],
                "scores": [list(pair) for pair in plan.reads[phase.name].scores],
                "vectors": [list(pair) for pair in plan.reads[phase.name].vectors],
                "pooled": [list(pair) for pair in plan.reads[phase.name].pooled],
                "cached": lessons.told(phase.name),
            }
            for phase in plan.phases
        ],
    }
