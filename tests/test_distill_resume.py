"""Distilling again: interrupted runs, caches and their absence give the same student."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import torch
from helpers import distil_interrupted, unsealed, weights_of
from transformers import AutoModelForSequenceClassification

import exitkit
from exitkit.errors import UsageError

QUICK = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 96}


TWO_PHASES = {**QUICK, "method": "layers", "student_width": 16, "training": {"save_steps": 2}}


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole") / "model"
    exitkit.distill(teacher=str(trained), output=folder, **TWO_PHASES)
    return weights_of(folder)


class Killed(BaseException):
    """Nothing catches this."""


@pytest.mark.parametrize(
    ("place", "time"),
    [
        ("exitkit.distillation.student.importance", 1),
        ("exitkit.distillation.student.extract", 1),
        ("exitkit.training.partial.save_file", 1),
        ("exitkit.process.outputs.os.replace", 1),
        ("exitkit.training.trainer.RecipeTrainer._save", 1),
        ("exitkit.training.trainer.RecipeTrainer._save", 3),
        ("exitkit.distillation.distill.score_exits", 1),
        ("exitkit.artifacts.artifact.publish", 1),
    ],
)
def test_a_run_killed_anywhere_resumes_to_the_same_bits(
    place: str, time: int, whole: dict[str, torch.Tensor], trained: Path, tmp_path: Path
) -> None:
    given = {"teacher": str(trained), "output": tmp_path / "model", **TWO_PHASES}
    module, _, name = place.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        parent, _, attribute = module.rpartition(".")
        owner = getattr(importlib.import_module(parent), attribute)
    right, calls = getattr(owner, name), 0

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == time:
            raise Killed
        return right(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            exitkit.distill(**given)
    assert not (tmp_path / "model").exists()
    exitkit.distill(resume=True, **given)
    assert not (tmp_path / "model.partial").exists()
    found = weights_of(tmp_path / "model")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_without_the_cache_the_student_is_the_same_to_rounding(
    whole: dict[str, torch.Tensor], trained: Path, tmp_path: Path
) -> None:
    report = exitkit.distill(teacher=str(trained), output=tmp_path / "model", cache_size="0", **TWO_PHASES)
    assert all(phase["cached"]["rows"] == 0 for phase in report["phases"])
    found = weights_of(tmp_path / "model")
    assert all(torch.allclose(found[key], whole[key], atol=1e-4) for key in whole)


def test_a_cache_of_ones_own_serves_later_runs(
    whole: dict[str, torch.Tensor], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"teacher": str(trained), "cache": tmp_path / "cache", **TWO_PHASES}
    exitkit.distill(output=tmp_path / "one", **given)
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".f32"}
    monkeypatch.setattr("exitkit.distillation.lessons.Lessons._ask", lambda *args: pytest.fail("asked again"))
    exitkit.distill(output=tmp_path / "two", **given)
    found = weights_of(tmp_path / "two")
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_another_teacher_or_seed_does_not_go_on(trained: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(trained, teacher)
    given = {"teacher": str(teacher), "output": tmp_path / "model", **QUICK}
    distil_interrupted(**given)
    with pytest.raises(UsageError, match="--seed was 42, and now is 1"):
        exitkit.distill(resume=True, **{**given, "seed": 1})
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    model.classifier.bias.data.add_(1.0)
    model.save_pretrained(unsealed(teacher))
    with pytest.raises(UsageError, match="the teachers have changed"):
        exitkit.distill(resume=True, **given)
