"""What a model tells of the texts that it has learned from, and that those are neither scored nor calibrated on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import exitkit
from exitkit.artifacts.cascade import learned_texts
from exitkit.data import fingerprints
from exitkit.data.fingerprints import FILE, NOTHING, UNKNOWN, hashed, joined, of_source, of_texts
from exitkit.data.sources import read
from exitkit.data.splits import Taken, free, texts, training_and_calibration
from exitkit.errors import ExitkitError, UsageError
from exitkit.report.tables import markdown

TEXTS = st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=20)


@given(TEXTS, TEXTS)
@settings(deadline=None, max_examples=30)
def test_a_hash_is_of_one_text_and_tells_apart_where_a_pair_is_cut(one: Any, other: Any) -> None:
    known = of_texts(one)
    assert np.isin(hashed(other), known.hashes).tolist() == [text in one for text in other]
    assert joined([known, of_texts(other)]).hashes.tolist() == sorted({*hashed(one).tolist(), *hashed(other).tolist()})


def test_hashes_are_the_same_on_every_machine() -> None:
    assert [hex(one) for one in hashed([("a good film",), ("a", "pair")]).tolist()] == [
        "0x94eedf2a99837155",
        "0x99ddaf5d9a04ba07",
    ]


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    for complete in (True, False):
        known = fingerprints.Fingerprints(hashed([("a",), ("b",)]), complete)
        fingerprints.write(tmp_path, known)
        again = fingerprints.read(tmp_path)
        assert (sorted(known.hashes.tolist()), complete) == (again.hashes.tolist(), again.complete)


def test_without_the_file_nothing_is_known_but_of_an_encoder_that_has_learned_no_answer(tmp_path: Path) -> None:
    assert not fingerprints.read(tmp_path).complete
    assert of_source(tmp_path, has_learned=True) is UNKNOWN
    assert of_source("some/encoder", has_learned=False) is NOTHING
    assert not joined([of_texts([("a",)]), UNKNOWN]).complete


@pytest.mark.parametrize(
    ("texts", "about", "message"),
    [
        (np.zeros(2, dtype=np.uint64), {"format": "2", "complete": "true"}, "newer exitkit.*Update exitkit"),
        (np.zeros(2, dtype=np.float32), {"format": "1", "complete": "true"}, "is damaged"),
        (np.zeros(2, dtype=np.uint64), {"complete": "true"}, "is damaged"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path: Path, texts: Any, about: dict[str, str], message: str) -> None:
    save_file({"texts": texts}, tmp_path / FILE, about)
    with pytest.raises(ExitkitError, match=f"{FILE}.*{message}"):
        fingerprints.read(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"{}")
    with pytest.raises(ExitkitError, match=f"{FILE} is damaged.*Remove it"):
        fingerprints.read(tmp_path)


def test_rows_of_which_the_lesser_part_is_taken_go_on_without_it(caplog: pytest.LogCaptureFixture) -> None:
    rows = read([(f"text {i}", "ab"[i % 2]) for i in range(10)])
    all_of_them = texts(rows)
    taken = [Taken(hashed(all_of_them[:3]), "are red"), Taken(hashed(all_of_them[2:5]), "are blue")]
    assert free(rows, taken, "to score", "Take others.").tolist() == [5, 6, 7, 8, 9]
    assert "3 of the 10 rows to score are red and 3 of the 10 rows to score are blue and are left out" in caplog.text
    more = [taken[0], Taken(hashed(all_of_them[2:6]), "are blue")]
    with pytest.raises(UsageError, match=r"are red and 4 of the 10.*would flatter.*Take others"):
        free(rows, more, "to score", "Take others.")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of training, as one file with others."""
    folder = tmp_path_factory.mktemp("rows")
    train = training_and_calibration("demo:reviews", seed=42, max_train_samples=2000).train
    test = read("demo:reviews", "test")
    names = train.labels

    def lines(rows: Any, first: int, last: int) -> list[str]:
        part = rows.data[first:last]
        return [
            json.dumps({"text": text, "label": names[label]})
            for text, label in zip(part["text"], part["label"], strict=True)
        ]

    (folder / "trained.jsonl").write_text("\n".join(lines(train, 0, 60)) + "\n")
    (folder / "mixed.jsonl").write_text("\n".join([*lines(train, 0, 20), *lines(test, 0, 60)]) + "\n")
    (folder / "new.jsonl").write_text("\n".join(lines(test, 0, 60)) + "\n")
    return folder


QUICK: dict[str, Any] = {"policy": ["entropy"], "rounds": 1, "split": "train"}


def test_training_rows_are_not_scored_whatever_the_contender(artifact: Path, source: Path) -> None:
    for asked in ({"speedups": "1x"}, {"policy": {"name": ["entropy"], "threshold": 0.3}}):
        with pytest.raises(UsageError, match="60 of the 60 rows to score are among the training rows"):
            exitkit.benchmark(artifact, data=str(source / "trained.jsonl"), **{**QUICK, **asked})


def test_the_rows_that_were_not_trained_on_are_scored(
    artifact: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = exitkit.benchmark(artifact, data=str(source / "mixed.jsonl"), speedups="1x", **QUICK)
    assert {one["rows"] for one in [*found["runs"], *found["baselines"]]} == {60}
    assert all(one["checked_against_training"] for one in [*found["runs"], *found["baselines"]])
    assert "20 of the 80 rows to score are among the training rows and are left out" in caplog.text
    assert "on train of mixed.jsonl (60 rows)" in markdown(found)


def test_a_model_that_was_given_away_without_the_file_is_scored_and_that_is_said(artifact: Path, source: Path) -> None:
    (artifact / FILE).unlink()
    found = exitkit.benchmark(artifact, data=str(source / "trained.jsonl"), speedups="1x", **QUICK)
    assert found["runs"][0]["rows"] == 60
    assert not found["runs"][0]["checked_against_training"]
    assert "not checked against training rows" in markdown(found)
    assert exitkit.load(artifact).predict(["a fine film"])


def test_calibrate_leaves_out_training_rows(artifact: Path, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked: dict[str, Any] = {"target_speedup": 1.2, "currency": "layers", "split": "train"}
    found = exitkit.calibrate(artifact, data=str(source / "mixed.jsonl"), **asked)
    assert (found["rows"], found["checked_against_training"]) == (60, True)
    assert "20 of the 80 rows to calibrate on are among the training rows and are left out" in caplog.text
    with pytest.raises(UsageError, match="to calibrate on are among the training rows"):
        exitkit.calibrate(artifact, data=str(source / "trained.jsonl"), **asked)


def test_rows_that_chose_settings_are_left_out_and_refused_where_they_are_the_larger_part(
    artifact: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new, chosen, other = source / "new.jsonl", source / "chosen.jsonl", source / "half.jsonl"
    lines = new.read_text().splitlines()
    chosen.write_text("\n".join(lines[:30]) + "\n")
    exitkit.calibrate(artifact, data=str(chosen), split="train", target_speedup=1.2, currency="layers")
    found = exitkit.benchmark(artifact, data=str(new), **QUICK)
    assert found["runs"][0]["rows"] == 30
    assert "30 of the 60 rows to score are among those that chose the settings and are left out" in caplog.text
    other.write_text("\n".join(lines[:59]) + "\n")
    with pytest.raises(UsageError, match="30 of the 59 rows to score are among those that chose the settings"):
        exitkit.benchmark(artifact, data=str(other), **QUICK)
    given = exitkit.benchmark(artifact, data=str(other), speedups="1x", **QUICK)
    assert given["runs"][0]["rows"] == 59, "nothing was chosen for 1x"


def test_train_writes_what_it_learned_from_and_no_other_row(trained: Path) -> None:
    known = learned_texts(trained)
    data = training_and_calibration("demo:reviews", seed=42, max_train_samples=2000)
    assert known.complete
    assert np.isin(hashed(texts(data.train)), known.hashes).all()
    assert len(known) == len(set(texts(data.train)))


def test_a_student_takes_over_what_its_teacher_learned_from(trained: Path, source: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text("\n".join(json.dumps({"text": f"a film, number {i}"}) for i in range(20)) + "\n")
    shared: dict[str, Any] = {"data": str(source / "new.jsonl"), "epochs": 0.1, "student_layers": 1}
    exitkit.distill(teacher=str(trained), output=tmp_path / "student", unlabelled=str(more), **shared)
    known, teachers = learned_texts(tmp_path / "student"), learned_texts(trained)
    assert known.complete
    assert np.isin(teachers.hashes, known.hashes).all()
    assert np.isin(hashed([("a film, number 3",)]), known.hashes).all()
    assert np.isin(hashed(texts(training_and_calibration(shared["data"], seed=42).train)), known.hashes).all()
    silent = tmp_path / "silent"
    shutil.copytree(trained, silent)
    (silent / FILE).unlink()
    exitkit.distill(teacher=str(silent), output=tmp_path / "other", **shared)
    assert not learned_texts(tmp_path / "other").complete


def test_a_cascade_knows_what_all_of_its_models_learned_from(trained: Path, tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two")):
        (tmp_path / name).mkdir()
        fingerprints.write(tmp_path / name, of_texts([(text,)]))
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "cascade.yaml").write_text("models: [../a, ../b]\n")
    known = learned_texts(tmp_path / "both")
    assert known.complete
    assert np.isin(hashed([("one",), ("two",)]), known.hashes).all()
    (tmp_path / "a" / FILE).unlink()
    assert not learned_texts(tmp_path / "both").complete
