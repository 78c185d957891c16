"""The size of a student from a speed-up: what fits into the time, by the clock."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exitkit.artifacts.plans import REACHED
from exitkit.calibration import layer_time
from exitkit.configuration.config import DistillConfig
from exitkit.data.batches import batches, encode
from exitkit.data.sources import Rows
from exitkit.distillation.extraction import misfit
from exitkit.distillation.student import NONE, TOKENS, bare, other_tables, resized
from exitkit.distillation.teacher import Teacher
from exitkit.distiller import Students
from exitkit.engine import layout
from exitkit.engine.loop import run
from exitkit.engine.model import ExitModel
from exitkit.engine.schedule import schedule
from exitkit.engine.stream import Batch
from exitkit.errors import UsageError
from exitkit.measuring import clock
from exitkit.plugins import Registry
from exitkit.process.outputs import write_text
from exitkit.progress import bar
from exitkit.tasks import Tagging, Task

log = logging.getLogger("exitkit")

FILE = "fit.json"
BATCH = 32
MOST_BATCHES = 16
ROUNDS = 3
LEAST_LAYERS = 2
MOST_WIDTHS = 16
MOST_TRIES = 5


@dataclass(frozen=True)
class Fit:
    """A size and how much faster than the teacher it is, both at full depth, in packed batches of 32."""

    layers: int
    width: int
    target: float
    predicted: float  # from the table of layer times
    measured: float  # on the clock, interleaved with the teacher
    measured_ci: tuple[float, float]

    def speedup(self) -> dict[str, Any]:
        """For the report."""
        return {
            "target": self.target,
            "predicted": self.predicted,
            "measured": self.measured,
            "measured_ci": list(self.measured_ci),
            "batch_size": BATCH,
        }

    def settings(self, settings: DistillConfig) -> DistillConfig:
        """The configuration with this size."""
        update = {"student_layers": self.layers, "student_width": self.width, "target_speedup": None}
        return settings.model_copy(update=update)

    def write(self, folder: Path) -> None:
        """Keep it, so that a resumed run builds the same student whatever the clock says by then."""
        write_text(folder / FILE, json.dumps(dataclasses.asdict(self)))


def read(folder: Path) -> Fit | None:
    """The size that an interrupted run had settled on."""
    try:
        plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Fit(**{**plain, "measured_ci": tuple(plain["measured_ci"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def fit(
    settings: DistillConfig, teacher: Teacher, students: Students, rows: Rows, task: Task, registry: Registry
) -> Fit:
    """The largest student that is as much faster than its teacher as `settings.target_speedup` says.

    It keeps its usual width, the teacher's, and as many layers as fit into the time. If fewer than two do, or fewer
    than --exits sit on, it gets the largest width at which that many fit. What is given of --student-layers and
    --student-width stays. The choice comes from a measured table of layer times and is confirmed on the clock; where
    that says less, smaller ones are tried, by what the table promises times what the clock made of it.

    Args:
        settings: with a target, and without a student that has a size of its own.
        teacher: that it is measured against.
        students: what a student of some size is.
        rows: to measure on; at most 512 are.
        task: what the student answers.
        registry: knows the families.

    Raises:
        UsageError: nothing that small can be built, or an exit is to sit where no student has a layer.
    """
    target = settings.target_speedup
    assert target is not None
    most = settings.student_layers or students.most_layers
    highest = max(settings.exits or [1])
    if highest > most:
        raise UsageError(f"--exits {','.join(map(str, settings.exits or []))}: the student has at most {most} layers.")
    timed = _timed(rows, teacher, settings.seed)
    clock_ = _Clock(settings, teacher, students, timed, task, registry)
    fewest = settings.student_layers or max(highest, min(LEAST_LAYERS, most))
    step = students.step * -(-students.width // (students.step * MOST_WIDTHS))
    widths = [settings.student_width] if settings.student_width else range(students.width, 0, -step)
    pace, tried = 1.0, []  # what the clock says ÷ what the table promises
    smallest, why = None, None
    for width in widths:
        unfit = clock_.unfit(width)
        if unfit is not None:
            why = unfit
            continue
        smallest = width
        for layers in range(most, fewest - 1, -1):
            if pace * clock_.predicted(layers, width) < REACHED * target:
                continue
            found = clock_.measured(target, layers, width)
            tried.append(found)
            pace = found.measured / found.predicted
            if found.measured >= REACHED * target or len(tried) == MOST_TRIES:
                return _settled(max(tried, key=lambda one: min(one.measured, REACHED * target)))
    if tried:
        return _settled(max(tried, key=lambda one: one.measured))
    if smallest is None:
        raise UsageError(f"--target-speedup {target:g}x: no student of width {widths[-1]} can start so: {why}")
    raise UsageError(
        f"--target-speedup {target:g}x: the smallest student, {fewest} layers of width {smallest}, is "
        f"{clock_.predicted(fewest, smallest):.2f}x as fast as the teacher here. Ask for less, allow fewer "
        "--student-layers, or add exits: exitkit calibrate speeds up the student once more."
    )


def _settled(found: Fit) -> Fit:
    """The choice, with a warning where the clock never said what was asked for."""
    if found.measured < REACHED * found.target:
        log.warning(
            "the student is %.2fx as fast as its teacher here, not %gx: the table of layer times promised %.2fx",
            found.measured,
            found.target,
            found.predicted,
        )
    log.info("%d layers of width %d: %.2fx as fast as the teacher", found.layers, found.width, found.measured)
    return found


class _Clock:
    """Tells how much faster than the teacher a student of some size is."""

    def __init__(
        self,
        settings: DistillConfig,
        teacher: Teacher,
        students: Students,
        timed: list[Batch],
        task: Task,
        registry: Registry,
    ) -> None:
        self.settings, self.teacher, self.students = settings, teacher, students
        self.timed, self.task, self.registry = timed, task, registry
        self.sequences = np.array([float(batch["input_ids"].shape[0]) for batch in timed])
        self.tokens = np.array([float(batch["attention_mask"].sum()) for batch in timed])
        theirs = teacher.model.shape
        table = layer_time.measure(teacher.model, timed, BATCH)
        self.tables = {theirs.width: table} if students.pieces else {}
        self.full = self._seconds(table, theirs.layers)

    def predicted(self, layers: int, width: int) -> float:
        """From the table of a width, which is measured once, on a student of one layer."""
        if width not in self.tables:
            self.tables[width] = layer_time.measure(self._bare(1, width), self.timed, BATCH)
        return self.full / self._seconds(self.tables[width], layers)

    def unfit(self, width: int) -> str | None:
        """Why no student of this width can start with what it is to have of the teacher; None when one can."""
        extract = self.settings.extract
        if extract == TOKENS:
            return other_tables(self._bare(1, width).stock, self.teacher)
        if not self.students.pieces or extract == NONE:
            return None
        return misfit(self._bare(1, width), self.teacher.model)

    def measured(self, target: float, layers: int, width: int) -> Fit:
        """In turn with the teacher, on the same batches."""
        runners = {"teacher": self._runner(self.teacher.model), "student": self._runner(self._bare(layers, width))}
        with bar("timing the student", ROUNDS * len(self.timed)) as advance:
            times = clock.interleaved(runners, self.timed, ROUNDS, self.teacher.model.device, advance)
        speed, interval = times.speedup("student", "teacher"), times.speedup_interval("student", "teacher")
        return Fit(layers, width, target, self.predicted(layers, width), speed, interval)

    def _seconds(self, times: layer_time.LayerTimes, layers: int) -> float:
        each = [float(line(self.sequences, self.tokens).sum()) for line in (times.embed, times.layer, times.last)]
        return each[0] + layers * each[1] + each[2]

    def _bare(self, layers: int, width: int) -> ExitModel:
        sized = self.settings.model_copy(update={"student_layers": layers, "student_width": width})
        config = resized(sized, self.students)
        student = bare(config, self.registry.encoder(config.model_type), self.task).to(self.teacher.model.device)
        layout.by_input(student)  # as the teacher's weights lie, and its own will once it is an artifact
        return student

    def _runner(self, model: ExitModel) -> clock.Runner:
        plan = schedule("fixed", self.registry.policy("fixed"), {"exit": model.shape.exits}, model.shape)
        return lambda batch: run(model, batch, plan)


def _timed(rows: Rows, teacher: Teacher, seed: int) -> list[Batch]:
    """Some random rows in padded batches, as the teacher reads them."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[: BATCH * MOST_BATCHES]
    unlabelled = replace(rows, data=rows.data.select(chosen).remove_columns(
        [name for name in rows.data.column_names if name == "label"]
    ))  # fmt: skip
    encoded = encode(unlabelled, teacher.tokenizer, teacher.max_length, isinstance(teacher.task, Tagging))
    made = batches(encoded, teacher.tokenizer, min(BATCH, len(chosen)))
    return [{name: tensor.to(teacher.model.device) for name, tensor in batch.items()} for batch in made]
