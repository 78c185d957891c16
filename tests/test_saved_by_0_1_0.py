"""What people have saved with exitkit 0.1.0 loads for good and answers the same; see saved_by_0_1_0/make.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import logged

import exitkit
from exitkit.artifacts import inspection

SAVED = Path(__file__).parent / "saved_by_0_1_0"
ANSWERS = json.loads((SAVED / "answers.json").read_text())
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("large", {}),
    "faster": ("large", {"speedup": 2}),
    "patience": ("large", {"policy": "patience"}),
    "full": ("large", {"policy": {"name": "fixed", "exit": 4}}),
    "cascade": ("both", {}),
}


@pytest.mark.parametrize("what", ASKED)
def test_an_old_model_answers_as_it_did(what: str) -> None:
    folder, asked = ASKED[what]
    found = exitkit.load(SAVED / folder).predict(ANSWERS["texts"], probabilities=True, **asked)
    for now, before in zip(found, ANSWERS[what], strict=True):
        assert (now["label"], now["exit"]) == (before["label"], before["exit"])
        assert now["score"] == pytest.approx(before["score"], abs=1e-6)
        assert now["probabilities"] == pytest.approx(before["probabilities"], abs=1e-6)


@pytest.mark.parametrize(("folder", "models"), [("large", ["large"]), ("both", ["both/../small", "both/../large"])])
def test_an_old_model_is_said_once_to_be_unchecked_and_a_cascade_is_not_called_changed(
    folder: str, models: list[str]
) -> None:
    with logged() as said:
        exitkit.load(SAVED / folder).predict(ANSWERS["texts"])
    unchecked = "has no manifest.json: whether its files are as they were saved is not checked"
    assert said == [f"{SAVED}/{one} {unchecked}" for one in models]


@pytest.mark.parametrize("folder", ["small", "large", "both"])
def test_an_old_model_can_be_inspected(folder: str) -> None:
    assert inspection.inspect(SAVED / folder)["task"] == "classification"


def test_an_old_model_can_be_calibrated_anew(tmp_path: Path) -> None:
    shutil.copytree(SAVED / "large", tmp_path / "large")
    exitkit.calibrate(tmp_path / "large", policy="entropy", target_speedup=1.2, currency="layers")
    assert exitkit.load(tmp_path / "large").predict(["the plot was good"])
