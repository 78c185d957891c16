"""Regression and multi-label beside classification: labels, metrics, losses, policies, and every command on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import exitkit
from exitkit.data.sources import read
from exitkit.data.splits import label_array, training_and_calibration
from exitkit.engine.replay import replay
from exitkit.engine.schedule import schedule
from exitkit.errors import UsageError
from exitkit.plugins import installed
from exitkit.policy import Shape, label_entropy
from exitkit.tasks import Classification, MultiLabel, Regression, balanced, metrics
from exitkit.testing import evidence, recording

WORDS = ("good", "bad", "long", "short", "loud", "quiet")


def sentences(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of six words, and how often each word occurs."""
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(WORDS), (rows, 6))
    counts = np.stack([np.bincount(row, minlength=len(WORDS)) for row in picks])
    return [" ".join(WORDS[i] for i in row) for row in picks], counts


def regression_rows(rows: int, seed: int = 0) -> list[dict[str, object]]:
    texts, counts = sentences(rows, seed)
    return [{"text": t, "label": float(c[0] - c[1]) / 2} for t, c in zip(texts, counts, strict=True)]


def multi_label_rows(rows: int, seed: int = 0) -> list[dict[str, object]]:
    texts, counts = sentences(rows, seed)
    return [
        {"text": t, "labels": [w for w, n in zip(WORDS[:3], c, strict=False) if n]}
        for t, c in zip(texts, counts, strict=True)
    ]


# --- what labels are


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0.5, 1.0, 2.0], "regression"),
        (["0.5", "1", "2"], "regression"),
        ([0, 1, 0], "classification"),
        (["0", "1", "0"], "classification"),
        (["01", "007", "01"], "classification"),
        ([["a"], [], ["a", "b"]], "multi-label"),
        ([[0], [1], [1, 0]], "multi-label"),
    ],
)
def test_the_task_is_seen_from_the_labels(labels, kind) -> None:
    rows = read([{"text": "t", "label": label} for label in labels])
    assert rows.task is not None
    assert rows.task.kind == kind


def test_lists_become_zeros_and_ones_in_the_order_of_the_names() -> None:
    rows = read([{"text": "t", "labels": labels} for labels in (["b"], [], ["b", "a"])])
    assert rows.labels == ("a", "b")
    assert label_array(rows).tolist() == [[0, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    "cells", [['["b"]', "[]", '["b", "a"]'], ["b", "", "b|a"], ["b", "", "b; a"], ["b", "", "a,b"]]
)
def test_a_file_of_strings_can_hold_several_labels(cells, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    lines = ["text,label", *(f'"t","{cell.replace(chr(34), chr(34) * 2)}"' for cell in cells)]
    file.write_text("\n".join(lines) + "\n")
    rows = read(str(file), task="multi-label")
    assert rows.labels == ("a", "b")
    assert label_array(rows).tolist() == [[0, 1], [0, 0], [1, 1]]


def test_whole_numbers_are_values_when_regression_is_asked_for() -> None:
    rows = read([("t", 1), ("t", 3)], task="regression")
    assert label_array(rows).tolist() == [1.0, 3.0]


def test_a_label_that_is_no_number_is_refused_with_its_row() -> None:
    with pytest.raises(UsageError, match=r"row 2 .*'x' in column 'label' is not a number"):
        read([("t", "1"), ("t", "x")], task="regression")


def test_an_unknown_label_of_several_is_refused_with_its_row() -> None:
    with pytest.raises(UsageError, match=r"row 2 .*unknown label 'c'"):
        read([{"text": "t", "labels": labels} for labels in (["b"], ["a", "c"])], task=MultiLabel(("a", "b")))


def test_the_hash_of_rows_follows_their_labels() -> None:
    for first, second in ((["a"], ["a", "b"]), (0.5, 0.25)):
        rows = [read([{"text": "t", "label": one}, {"text": "u", "label": first}]) for one in (first, second)]
        assert rows[0].hash() != rows[1].hash()


def test_training_rows_with_nothing_to_learn_are_refused() -> None:
    with pytest.raises(UsageError, match=r"all have the label 0\.5"):
        training_and_calibration([{"text": str(i), "label": 0.5} for i in range(20)])
    rows = [{"text": str(i), "labels": []} for i in range(20)]
    with pytest.raises(UsageError, match="have no label at all"):
        training_and_calibration([*rows, {"text": "x", "labels": ["a"]}], max_train_samples=2, seed=1)


# --- losses and metrics


def test_losses_are_those_of_torch() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    numbers = torch.tensor([0, 1])
    weights = torch.tensor([1.0, 3.0])
    each = cross_entropy(logits, numbers, reduction="none")
    assert torch.allclose(Classification(("a", "b")).loss(logits, numbers), each)
    assert torch.allclose(Classification(("a", "b")).loss(logits, numbers, weights), each * torch.tensor([1.0, 3.0]))
    by_hand = (math.log1p(math.exp(-2)) * 3 + math.log1p(math.exp(-1))) / 2
    many = MultiLabel(("a", "b")).loss(logits[:1], torch.tensor([[1, 0]]), torch.tensor([3.0, 1.0]))
    assert many.item() == pytest.approx(by_hand)
    assert Regression().loss(torch.tensor([[2.0]]), torch.tensor([0.5])).item() == pytest.approx(2.25)


def test_balanced_weights_give_every_class_the_same_say() -> None:
    weights = balanced(np.array([0, 0, 0, 1]), Classification(("a", "b", "never")))
    assert weights.tolist() == pytest.approx([4 / 9, 4 / 3, 1.0])
    weights = balanced(np.array([[1, 0], [0, 0], [0, 0], [1, 0]]), MultiLabel(("a", "never")))
    assert weights.tolist() == [1.0, 1.0]
    with pytest.raises(UsageError, match="regression has no classes"):
        balanced(np.array([0.5]), Regression())


def test_metrics_by_hand() -> None:
    truth, given = np.array([[1, 0], [1, 1]], bool), np.array([[1, 0], [0, 1]], bool)
    task = MultiLabel(("a", "b"))
    assert task.metric("accuracy")(truth, given) == 0.5
    assert task.metric("f1_micro")(truth, given) == pytest.approx(0.8)
    assert task.metric("f1_macro")(truth, given) == pytest.approx((2 / 3 + 1) / 2)
    assert task.metric("f1:a")(truth, given) == pytest.approx(2 / 3)
    rise = np.array([1.0, 2.0, 4.0])
    assert Regression().metric("spearman")(rise, rise**3) == pytest.approx(1.0)
    assert Regression().metric("pearson")(rise, -rise) == pytest.approx(-1.0)
    assert Regression().metric("pearson")(rise, np.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("task", "name"), [(Regression(), "accuracy"), (MultiLabel(("a",)), "mcc"), (Regression(), "f1:a")]
)
def test_a_metric_of_another_task_is_refused(task, name) -> None:
    with pytest.raises(UsageError, match=f"for {task.kind}: .*'{name}'"):
        task.metric(name)


# --- policies


def test_entropy_and_confidence_refuse_regression_with_a_reason() -> None:
    shape = Shape(exits=3, layers=3, labels=1, width=8, task="regression")
    for name in ("entropy", "confidence"):
        with pytest.raises(UsageError, match=f"'{name}' does not work for regression: a single value .* patience"):
            schedule(name, installed().policy(name), {}, shape)


def test_a_knob_of_another_task_is_neither_shown_nor_taken() -> None:
    shape = Shape(exits=3, layers=3, labels=2, width=8, task="classification")
    policy = installed().policy("patience")
    assert schedule("patience", policy, {}, shape).settings == {"patience": 2}
    with pytest.raises(UsageError, match="tolerance has no meaning for classification"):
        schedule("patience", policy, {"tolerance": 0.2}, shape)


def test_patience_waits_until_a_value_stands_still() -> None:
    shape = Shape(exits=5, layers=5, labels=1, width=8, task="regression", scale=2.0)
    values = torch.tensor([[0.0, 0.0], [1.0, 0.1], [1.19, 0.4], [1.3, 0.6], [9.0, 0.7]])[:, :, None]
    plan = schedule("patience", installed().policy("patience"), {"patience": 1, "tolerance": 0.1}, shape)
    outcome = replay(recording(values, shape), plan)
    assert outcome.exit.tolist() == [3, 2]  # differences below 0.1 · 2
    assert outcome.logits[:, 0].tolist() == pytest.approx([1.19, 0.1])


def test_patience_in_multi_label_waits_for_all_labels() -> None:
    shape = Shape(exits=4, layers=4, labels=2, width=8, task="multi-label")
    signs = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]], [[1.0, -2.0]], [[1.0, -2.0]]])
    plan = schedule("patience", installed().policy("patience"), {"patience": 1}, shape)
    assert replay(recording(signs, shape), plan).exit.tolist() == [3]


def test_in_multi_label_the_least_certain_label_decides() -> None:
    logits = torch.tensor([[9.0, 0.0], [9.0, -9.0]])
    assert label_entropy(logits)[0, 1] == 1.0
    registry = installed()
    seen = evidence(logits, task="multi-label")
    assert registry.policy("entropy")().decide(seen, {})[0].tolist() == [False, True]
    assert registry.policy("confidence")().decide(seen, {})[0].tolist() == [False, True]


# --- the whole way


def _train(encoder: Path, rows: list[dict[str, object]], folder: Path, **more: object) -> dict[str, object]:
    return exitkit.train(
        model=str(encoder),
        data=rows,
        output=folder,
        epochs=2,
        recipe={"name": "joint", "learning_rate": 2e-3, "head_learning_rate": 2e-3},
        **more,
    )


def test_regression_goes_through_every_command(encoder: Path, tmp_path: Path) -> None:
    file, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in regression_rows(700)))
    test.write_text("".join(json.dumps(row) + "\n" for row in regression_rows(200, seed=1)))
    folder = tmp_path / "model"
    report = _train(encoder, str(file), folder)  # type: ignore[arg-type]
    assert (report["task"], report["metric"]) == ("regression", "pearson")
    assert report["exits"][-1]["score"] > 0.5  # type: ignore[index]
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "regression"
    chosen = exitkit.calibrate(folder, target_speedup=1.2, currency="layers", metric="spearman")
    assert chosen["policy"] == "patience"
    assert set(chosen["settings"]) == {"patience", "tolerance"}
    assert chosen["measured_speedup"]["layers"] >= 0.97 * 1.2
    drop = exitkit.calibrate(folder, max_drop=0.3, currency="layers")
    assert drop["full_score"] - drop["score"] <= 0.3
    report = exitkit.benchmark(folder, data=str(test), rounds=1, speedups="1x,1.2x", currency="layers")
    assert [run["metric"] for run in report["runs"]] == ["pearson", "pearson"]
    assert report["runs"][0]["agreement"] == pytest.approx(1.0)
    (answer,) = exitkit.load(folder).predict(["good good long"])
    assert isinstance(answer["label"], float)
    assert answer["score"] is None
    with pytest.raises(UsageError, match="does not work for regression"):
        exitkit.calibrate(folder, target_speedup=1.2, policy="entropy")
    with pytest.raises(UsageError, match="no probabilities"):
        exitkit.load(folder).predict_proba(["good"])


def test_multi_label_goes_through_every_command(encoder: Path, tmp_path: Path) -> None:
    file, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in multi_label_rows(700)))
    test.write_text("".join(json.dumps(row) + "\n" for row in multi_label_rows(200, seed=1)))
    folder = tmp_path / "model"
    report = _train(encoder, str(file), folder, metric="f1:good", class_weights="balanced")  # type: ignore[arg-type]
    assert (report["task"], report["metric"]) == ("multi-label", "f1:good")
    assert report["exits"][-1]["f1_micro"] > 0.7  # type: ignore[index]
    chosen = exitkit.calibrate(folder, target_speedup=1.3, currency="layers", metric="f1_macro")
    assert (chosen["policy"], chosen["metric"]) == ("entropy", "f1_macro")
    report = exitkit.benchmark(folder, data=str(test), rounds=1)
    assert report["runs"][0]["metric"] == "f1:good"
    (answer,) = exitkit.load(folder).predict(["good good long"], probabilities=True)
    assert isinstance(answer["label"], list)
    assert len(answer["label"]) == len(answer["score"])
    assert set(answer["probabilities"]) == {"bad", "good", "long"}
    assert all(
        (answer["probabilities"][label] > 0.5) == (label in answer["label"]) for label in ("bad", "good", "long")
    )


def test_class_weights_pull_answers_towards_the_rare_class(encoder: Path, tmp_path: Path) -> None:
    texts, counts = sentences(600)
    rows = [{"text": t, "label": "rare" if c[0] > 2 else "usual"} for t, c in zip(texts, counts, strict=True)]
    found = []
    for weights in (None, {"rare": 30.0}):
        folder = tmp_path / f"model-{bool(weights)}"
        _train(encoder, rows, folder, class_weights=weights)
        found.append(sum(a["label"] == "rare" for a in exitkit.load(folder).predict(texts[:200])))
    assert found[1] > found[0] + 20
    with pytest.raises(UsageError, match="--class-weights: unknown label 'seldom'"):
        _train(encoder, rows, tmp_path / "other", class_weights={"seldom": 2})


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_metrics_are_those_of_scikit_learn_and_scipy(classes: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, rows)
    given_ = np.where(random.random(rows) < 0.6, truth, random.integers(0, classes, rows))
    assert metrics.f1_macro(truth, given_) == pytest.approx(sk.f1_score(truth, given_, average="macro"))
    assert metrics.f1_micro(truth, given_) == pytest.approx(sk.f1_score(truth, given_, average="micro"))
    assert metrics.mcc(truth, given_) == pytest.approx(sk.matthews_corrcoef(truth, given_))
    of_one = Classification(tuple(map(str, range(classes)))).metric("f1:1")
    assert of_one(truth, given_) == pytest.approx(sk.f1_score(truth == 1, given_ == 1, zero_division=0))
    some, others = random.random((rows, 3)) < 0.4, random.random((rows, 3)) < 0.4
    assert metrics.f1_macro_of_labels(some, others) == pytest.approx(
        sk.f1_score(some, others, average="macro", zero_division=0)
    )
    assert metrics.f1_micro(some, others) == pytest.approx(sk.f1_score(some, others, average="micro", zero_division=0))
    values, close = random.normal(1e3, 1, rows), random.normal(1e3, 1, rows)
    expected = float(np.corrcoef(values, close)[0, 1]) if rows > 1 else 0.0
    assert metrics.pearson(values, close) == pytest.approx(expected, abs=1e-9)
    assert metrics.pearson(values, np.full(rows, 3.0)) == 0


def test_faith_is_the_full_models_probability_of_what_is_answered() -> None:
    full, given = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log(), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert Classification(("a", "b")).faith(full)(given) == pytest.approx((0.8 + 0.4) / 2)
    shares = torch.tensor([[0.9, 0.3]])
    said = torch.tensor([[2.0, 1.0]])  # both hold
    assert MultiLabel(("a", "b")).faith(shares.logit())(said) == pytest.approx((0.9 + 0.3) / 2)
    assert Regression().faith(torch.tensor([[1.0], [2.0]]))(torch.tensor([[1.0], [5.0]])) == pytest.approx(-4.5)
