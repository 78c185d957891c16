"""The size of a student from a speed-up: the largest that fits by the table, confirmed by the clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import distil_interrupted

import exitkit
from exitkit.calibration.layer_time import LayerTimes, Line
from exitkit.configuration import parsing
from exitkit.configuration.config import DistillConfig
from exitkit.data.sources import read
from exitkit.distillation import fit
from exitkit.distillation.methods.logits import Logits
from exitkit.distillation.student import students_of
from exitkit.distillation.teacher import Teacher, load_teachers
from exitkit.engine.model import ExitModel
from exitkit.errors import UsageError
from exitkit.measuring.clock import Times
from exitkit.plugins import installed

REGISTRY = installed()
WIDTH = 32


@pytest.fixture(scope="module")
def teacher(trained: Path) -> Teacher:
    """Four layers of two heads with 16 features each."""
    return load_teachers([str(trained)], REGISTRY, torch.device("cpu"), None)[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Layers take time by their width squared and nothing else takes any; the clock says what is popped from a list."""
    said: list[float] = []

    def line(per_token: float) -> Line:
        return Line(np.array([1.0]), np.array([0.0]), np.array([per_token]))

    def measure(model, batches, batch_size):
        return LayerTimes(line(0.0), line((model.shape.width / WIDTH) ** 2), line(0.0), line(0.0))

    def interleaved(runners, batches, rounds, device, advance, turn=1):
        for run in runners.values():
            run(batches[0])
        ones = np.ones((rounds, len(batches)))
        return Times({"student": ones, "teacher": ones * (said.pop(0) if said else 100.0)})

    monkeypatch.setattr("exitkit.calibration.layer_time.measure", measure)
    monkeypatch.setattr("exitkit.measuring.clock.interleaved", interleaved)
    return said


def fitted(teacher: Teacher, **given: object) -> fit.Fit:
    settings = parsing.parse(DistillConfig, given)
    students = students_of(Logits(), teacher, REGISTRY)
    return fit.fit(settings, teacher, students, read("demo:reviews", "train[:70]"), teacher.task, REGISTRY)


@pytest.mark.parametrize(
    ("given", "layers", "width", "predicted"),
    [
        ({"target_speedup": "1x"}, 4, 32, 1.0),
        ({"target_speedup": "1.3x"}, 3, 32, 4 / 3),
        ({"target_speedup": "2x"}, 2, 32, 2.0),
        ({"target_speedup": "4x"}, 4, 16, 4.0),  # two layers of full width are 2x, so a narrower one
        ({"target_speedup": "7x"}, 2, 16, 8.0),
        ({"target_speedup": "3x", "student_layers": 3}, 3, 16, 16 / 3),
        ({"target_speedup": "4x", "student_layers": 1}, 1, 32, 4.0),
        ({"target_speedup": "5x", "student_width": 16}, 3, 16, 16 / 3),
    ],
)
def test_the_largest_student_that_fits(
    given: dict, layers: int, width: int, predicted: float, teacher: Teacher, clock: list[float]
) -> None:
    found = fitted(teacher, **given)
    assert (found.layers, found.width) == (layers, width)
    assert found.predicted == pytest.approx(predicted)


def test_students_are_timed_with_weights_that_lie_as_the_teachers_do(
    teacher: Teacher, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ExitModel] = []
    right = fit._Clock._runner
    monkeypatch.setattr(fit._Clock, "_runner", lambda self, model: seen.append(model) or right(self, model))
    fitted(teacher, target_speedup="2x")
    strides = [model.encoder.blocks[0].intermediate.dense.weight.stride() for model in seen]
    assert len(strides) == 2
    assert strides[0] == strides[1]


def test_a_layer_is_taken_away_as_long_as_the_clock_says_less(teacher: Teacher, clock: list[float]) -> None:
    clock += [1.2, 1.29]  # 3 layers; then 2, promised 2 * 1.2 / 1.33 = 1.8x and within 3 % of the target
    found = fitted(teacher, target_speedup="1.3x")
    assert (found.layers, found.measured) == (2, 1.29)


def test_narrower_students_are_tried_when_no_layer_is_left(teacher: Teacher, clock: list[float]) -> None:
    clock += [1.5, 3.0]
    found = fitted(teacher, target_speedup="2x", student_layers=2)
    assert (found.layers, found.width, found.measured) == (2, 16, 3.0)


def test_what_is_within_three_percent_is_not_made_smaller(teacher: Teacher, clock: list[float]) -> None:
    assert fitted(teacher, target_speedup="2.05x").layers == 2, "2x is 0.976 of it"


def test_widths_that_cannot_be_cut_out_are_passed_over(
    teacher: Teacher, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "misfit", lambda student, whole: "no" if student.shape.width == 32 else None)
    assert fitted(teacher, target_speedup="1x").width == 16
    assert fitted(teacher, target_speedup="1x", extract="none").width == 32


def test_what_the_clock_never_confirms_is_said(
    teacher: Teacher, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    clock += [1.0, 1.1, 1.0, 1.0, 1.0]
    assert fitted(teacher, target_speedup="1.3x").layers == 2
    assert "1.10x as fast as its teacher here, not 1.3x" in caplog.text


@pytest.mark.parametrize("given", [{}, {"student_width": 16}, {"student_layers": 3}])
def test_a_speedup_that_no_student_has_is_refused(given: dict, teacher: Teacher, clock: list[float]) -> None:
    with pytest.raises(UsageError, match=r"--target-speedup 50x: the smallest student, \d layers of width 16, is"):
        fitted(teacher, target_speedup="50x", **given)


def test_a_student_has_the_layers_that_its_exits_sit_on(teacher: Teacher, clock: list[float]) -> None:
    found = fitted(teacher, target_speedup="2x", exits="1,3")
    assert (found.layers, found.width) == (4, 16)
    for given in ({"exits": "2,5"}, {"exits": "1,3", "student_layers": 2}):
        with pytest.raises(UsageError, match=r"--exits \d,\d: the student has at most \d layers"):
            fitted(teacher, target_speedup="2x", **given)


def test_a_student_that_cannot_start_as_it_is_to_is_not_timed(teacher: Teacher, clock: list[float]) -> None:
    found = fitted(teacher, target_speedup="2x", extract="tokens")
    assert (found.layers, found.width) == (2, 32), "a narrower one could not have the teacher's token embeddings"
    for given in ({"target_speedup": "2x", "student_width": 16}, {"target_speedup": "4x"}):
        reason = (
            "no student of width 16 can start so: the student's table" if "student_width" in given else "width 32, is"
        )
        with pytest.raises(UsageError, match=reason):
            fitted(teacher, extract="tokens", **given)


def test_sizes_that_exclude_each_other(trained: Path) -> None:
    for given in ({"student": "config.json"}, {"student_layers": 2, "student_width": 16}):
        with pytest.raises(UsageError, match="leave out --student-layers"):
            parsing.parse(DistillConfig, {"target_speedup": "2x", **given})


def test_the_student_is_built_and_its_speed_reported(trained: Path, tmp_path: Path, clock: list[float]) -> None:
    clock += [1.25]
    quick = {"data": "demo:reviews", "max_train_samples": 64, "epochs": 1}
    student = exitkit.distill(teacher=str(trained), output=tmp_path / "s", target_speedup=1.2, **quick)["student"]
    assert (student["layers"], student["width"]) == (3, 32)
    assert student["speedup"] == {
        "target": 1.2,
        "predicted": pytest.approx(4 / 3),
        "measured": 1.25,
        "measured_ci": [1.25, 1.25],
        "batch_size": 32,
    }
    assert exitkit.load(tmp_path / "s").artifact.model.shape.layers == 3


def test_a_resumed_run_keeps_its_size(
    trained: Path, tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock += [1.7]
    settings = {
        "teacher": str(trained), "output": tmp_path / "s", "data": "demo:reviews", "max_train_samples": 64,
        "epochs": 1, "target_speedup": 1.5,
    }  # fmt: skip
    distil_interrupted(**settings)
    monkeypatch.delattr("exitkit.distillation.fit.fit")  # the size is known
    student = exitkit.distill(**settings, resume=True)["student"]
    assert (student["layers"], student["width"]) == (2, 32)
    assert (student["speedup"]["predicted"], student["speedup"]["measured"]) == (pytest.approx(2.0), 1.7)
