"""Other data are read by the columns of training, where they have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import unsealed

import exitkit
from exitkit.artifacts.artifact import CARD
from exitkit.data.columns import Columns
from exitkit.data.remembered import remembered
from exitkit.data.sources import read

TRAINED = Columns("review", None, "rating")
FRAME = [{"review": f"r {i}", "content": f"c {i}", "rating": i / 10, "label": "a"} for i in range(4)]


def test_columns_of_training_that_are_there_are_used() -> None:
    assert remembered(FRAME, Columns(), TRAINED) == TRAINED


def test_columns_that_were_joined_or_lie_inside_another_are_remembered_too() -> None:
    rows = [{"title": "t", "body": "b", "text": "other", "label": {"name": "pos"}} for _ in range(4)]
    trained = Columns("title,body", None, "label.name")
    assert remembered(rows, Columns(), trained) == trained


def test_what_is_asked_for_stands() -> None:
    assert remembered(FRAME, Columns(label="label"), TRAINED) == Columns("review", None, "label")
    assert remembered(FRAME, Columns(text="content"), TRAINED) == Columns("content", None, "rating")


def test_half_of_a_pair_is_no_pair() -> None:
    pair = Columns("review", "answer", "rating")
    assert remembered(FRAME, Columns(), pair) == Columns(None, None, "rating")


def test_a_column_that_is_not_there_is_found_by_the_usual_names_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "exitkit")
    source = [{"text": "t", "label": 0.5}]
    columns = remembered(source, Columns(), TRAINED)
    assert read(source, columns=columns).origin.columns == Columns("text", None, "label")
    assert "no column 'rating', which held the label at training" in caplog.text


def test_benchmark_and_calibrate_score_the_label_that_was_trained(artifact: Path, tmp_path: Path) -> None:
    card = unsealed(artifact) / CARD
    card.write_text(card.read_text().replace("text: text", "text: review").replace("label: label", "label: mood"))
    rows = read("demo:reviews", "test[:60]")
    lines = [
        json.dumps({"review": text, "mood": rows.labels[label], "text": "n/a", "grade": "x"})
        for text, label in zip(rows.data["text"][:], rows.data["label"][:], strict=True)
    ]
    file = tmp_path / "new.jsonl"
    file.write_text("\n".join(lines) + "\n")
    asked: dict[str, Any] = {"data": str(file), "split": "train", "policy": ["entropy"]}
    found = exitkit.benchmark(artifact, speedups="1x", rounds=1, **asked)
    assert found["runs"][0]["metric"] == "accuracy"
    right = [
        answer["label"] == rows.labels[label]
        for answer, label in zip(
            exitkit.load(artifact).predict(rows.data["text"][:]), rows.data["label"][:], strict=True
        )
    ]
    assert found["runs"][0]["full_score"] == sum(right) / len(right)
    calibrated = exitkit.calibrate(artifact, target_speedup=1.1, currency="layers", **asked)
    assert calibrated["metric"] == "accuracy"
