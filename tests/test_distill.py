"""`exitkit distill` end to end: students that are ordinary artifacts, with and without labels, resumed, refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import cli, unsealed, weights_of
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import exitkit
from exitkit.data import demo
from exitkit.data.sources import read
from exitkit.distiller import Distiller
from exitkit.errors import UsageError
from exitkit.plugins import Plugin, collect, installed

QUICK = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 96}


def logits_of(folder: Path, texts: list[str]) -> torch.Tensor:
    """What plain transformers answers."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def test_a_student_is_calibrated_benchmarked_and_asked_like_any_other(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    report = cli(
        "distill", "--teacher", trained, "--data", "demo:reviews", "--output", folder, "--method", "layers",
        "--student-layers", "2", "--student-width", "16", "--layer-map", "1,4", "--epochs", "1",
        "--max-train-samples", "200", "--cache-size", "1MB",
    )  # fmt: skip
    assert report == json.loads((folder / "metrics.json").read_text())
    assert {"task", "recipe", "metric", "split", "train_seconds", "samples_per_second"} <= report.keys()
    assert [one["layer"] for one in report["exits"]] == [1, 2]
    assert all(0 <= one["teacher_agreement"] <= 1 for one in report["exits"])
    assert (report["method"], report["options"]["layer_map"]) == ("layers", "1,4")
    inside, answers = report["phases"]
    assert (inside["phase"], inside["hidden"], inside["scores"]) == (
        "layers",
        [[0, 0], [1, 1], [2, 4]],
        [[1, 1], [2, 4]],
    )
    assert answers["cached"]["rows"] == 200 > inside["cached"]["rows"] > 0
    assert inside["cached"]["bytes"] + answers["cached"]["bytes"] <= 1e6
    student = report["student"]
    assert (student["layers"], student["width"], student["heads"], student["extract"]) == (2, 16, 1, "impt")
    assert student["parameters"] < report["teachers"][0]["parameters"] / 2
    assert {file.name for file in folder.iterdir()} == {file.name for file in trained.iterdir()}, (
        "nothing of the distillation is left"
    )
    card = (folder / "README.md").read_text()
    assert "distilled by exitkit" in card
    assert "as the teacher" in card
    found = cli("calibrate", folder, "--target-speedup", "1.2x", "--currency", "layers")
    assert found["policy"] == "entropy"
    rows = cli("benchmark", folder, "--output", tmp_path / "report", "--max-rows", "40", "--rounds", "1")
    assert rows["runs"]
    texts = read("demo:reviews", "test[:20]").data["text"][:]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    asked = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    cli("predict", folder, *asked, "--policy", "entropy", "--set", "policy.threshold=off")
    given = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    labels = AutoConfig.from_pretrained(folder).id2label
    assert given == [labels[number] for number in logits_of(folder, texts).argmax(dim=-1).tolist()]


def test_extraction_alone_at_the_teachers_size_keeps_its_answers(trained: Path, tmp_path: Path) -> None:
    """With nothing learned (a learning rate of zero), the student's files hold the teacher's weights bit for bit."""
    still = {"name": "logits", "learning_rate": 0.0, "head_learning_rate": 0.0}
    exitkit.distill(teacher=str(trained), output=tmp_path / "s", student_layers=4, method=still, **QUICK)
    ours, theirs = weights_of(tmp_path / "s"), weights_of(trained)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_student_without_exits_has_one(trained: Path, tmp_path: Path) -> None:
    report = exitkit.distill(teacher=str(trained), output=tmp_path / "s", no_exits=True, **QUICK)
    assert [(one["exit"], one["layer"]) for one in report["exits"]] == [(1, 2)]
    assert len(exitkit.load(tmp_path / "s").predict(["a good film"])) == 1


def test_students_learn_to_say_what_the_teacher_says(trained: Path, tmp_path: Path) -> None:
    """From random weights and without a label, on a teacher that does not always say the same."""
    teacher = tmp_path / "teacher"
    shutil.copytree(trained, teacher)
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    texts = read("demo:reviews", "validation").data["text"][:200]
    with torch.no_grad():
        logits = logits_of(trained, texts)
        model.classifier.weight.mul_(20)
        model.classifier.bias.copy_(20 * (model.classifier.bias - logits.median(dim=0).values))
    model.save_pretrained(unsealed(teacher))
    share = logits_of(teacher, texts).argmax(-1).float().mean().item()
    assert 0.2 < share < 0.8
    method = {"name": "logits", "learning_rate": 2e-3, "head_learning_rate": 2e-3, "hard": 0.0}
    report = exitkit.distill(
        teacher=str(teacher), output=tmp_path / "s", extract="none", method=method,
        **{**QUICK, "max_train_samples": 1000, "epochs": 3},
    )  # fmt: skip
    assert report["exits"][-1]["teacher_agreement"] > max(share, 1 - share) + 0.1


# --- labels or none


def csv(file: Path, labels: bool, rows_of: str = "train[:60]") -> Path:
    rows = read("demo:reviews", rows_of)
    names = [rows.labels[number] for number in rows.data["label"][:]]
    texts = [text.replace('"', "").replace(",", "") for text in rows.data["text"][:]]
    lines = [f"{text},{name}" if labels else text for text, name in zip(texts, names, strict=True)]
    file.write_text("\n".join(["text,label" if labels else "text", *lines]) + "\n")
    return file


def test_labels_are_optional_everywhere(trained: Path, tmp_path: Path) -> None:
    bare, full = csv(tmp_path / "bare.csv", False), csv(tmp_path / "full.csv", True)
    given = {
        "labels": {"data": str(full)},
        "both": {"data": str(full), "unlabelled": str(bare)},
        "none": {"data": str(bare)},
        "only": {"unlabelled": str(full)},
    }
    counts = {}
    for name, source in given.items():
        report = exitkit.distill(teacher=str(trained), output=tmp_path / name, epochs=1, **source)
        counts[name] = report["learned_from"]
        assert report["metric"] == ("accuracy" if name in ("labels", "both") else "agreement")
        assert ("score" in report["teacher"]) == (name in ("labels", "both"))
        assert all("teacher_agreement" in one for one in report["exits"])
    train = counts["labels"]["labelled"]
    assert counts["labels"]["unlabelled"] == 0
    assert counts["both"] == {"labelled": train, "unlabelled": train}, "the same texts, less those kept back"
    assert counts["none"]["labelled"] == counts["only"]["labelled"] == 0
    assert counts["none"]["unlabelled"] > 0
    found = exitkit.calibrate(tmp_path / "none", target_speedup=1.2, currency="layers")
    assert found["metric"] == "agreement"


def test_unlabelled_texts_may_stand_in_another_column_than_those_with_labels(trained: Path, tmp_path: Path) -> None:
    file = csv(tmp_path / "bare.csv", False)
    file.write_text(file.read_text().replace("text\n", "review\n", 1))
    report = exitkit.distill(teacher=str(trained), output=tmp_path / "s", unlabelled=str(file), **QUICK)
    assert report["learned_from"] == {"labelled": 96, "unlabelled": 60}


def test_a_metric_that_needs_labels_needs_them(trained: Path, tmp_path: Path) -> None:
    bare = csv(tmp_path / "bare.csv", False)
    with pytest.raises(UsageError, match="accuracy needs labels, and these rows have none"):
        exitkit.distill(teacher=str(trained), data=str(bare), output=tmp_path / "s", metric="accuracy")


@pytest.mark.parametrize("kind", ["regression", "multi-label"])
def test_other_tasks_are_distilled_too(kind: str, encoder: Path, tmp_path: Path) -> None:
    """With labels from answers, without from layers or relations."""
    texts = read("demo:reviews", "train[:80]").data["text"][:]
    labels = [len(text) / 40 for text in texts] if kind == "regression" else [["a"], ["a", "b"], []] * 26 + [["b"]] * 2
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    exitkit.train(model=str(encoder), data=rows, output=tmp_path / "teacher", epochs=0.5)
    bare = [{"text": text} for text in texts]
    for method, data in (("logits", rows), ("layers", bare), ("minilm", bare)):
        folder = tmp_path / method
        report = exitkit.distill(
            teacher=str(tmp_path / "teacher"),
            data=data,
            unlabelled=str(csv(tmp_path / "bare.csv", False, "test[:60]")),
            output=folder,
            method=method,
            epochs=0.5,
        )
        assert report["task"] == kind
        assert report["learned_from"]["unlabelled"] == 60 + (0 if method == "logits" else 72)
        assert exitkit.load(folder).predict(["a text"])


def test_several_teachers_teach_one_student(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    report = cli(
        "distill", "--teacher", trained, "--teacher", other, "--data", "demo:reviews", "--output", tmp_path / "s",
        "--epochs", "1", "--max-train-samples", "64",
    )  # fmt: skip
    assert [one["teacher"] for one in report["teachers"]] == [str(trained), str(other)]
    with pytest.raises(UsageError, match="cannot be averaged"):
        exitkit.distill(teacher=[str(trained), str(other)], output=tmp_path / "t", method="layers", **QUICK)


def test_a_student_of_its_own_with_another_tokenizer_learns_from_answers_only(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    demo.build_model(other, layers=2, width=16, heads=1)
    shorter = AutoTokenizer.from_pretrained(other)
    vocabulary = sorted(shorter.get_vocab(), key=shorter.get_vocab().get)
    text = (other / "tokenizer.json").read_text().replace(f'"{vocabulary[-1]}"', '"unheard-of"')
    for word in ("the", "film", "movie", "good", "was", "a", "is"):
        text = text.replace(f'"{word}"', f'"{word}-not"')
    (other / "tokenizer.json").write_text(text)
    report = exitkit.distill(teacher=str(trained), student=str(other), output=tmp_path / "s", **QUICK)
    assert (report["student"]["layers"], report["student"]["extract"]) == (2, "none")
    with pytest.raises(UsageError, match="different tokens"):
        exitkit.distill(teacher=str(trained), student=str(other), output=tmp_path / "t", method="layers", **QUICK)


def test_a_config_is_enough_for_a_student(trained: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(trained)
    config.num_hidden_layers, config.intermediate_size = 3, 20
    config.save_pretrained(tmp_path / "shape")
    report = exitkit.distill(teacher=str(trained), student=str(tmp_path / "shape"), output=tmp_path / "s", **QUICK)
    assert (report["student"]["inner"], report["student"]["extract"]) == (20, "impt")
    assert report["student"]["from_layers"] == [2, 3, 4]
    config.hidden_size = 24  # two heads of 12, where the teacher has heads of 16
    config.save_pretrained(tmp_path / "odd")
    given = {"teacher": str(trained), "student": str(tmp_path / "odd"), **QUICK}
    report = exitkit.distill(output=tmp_path / "t", **given)
    assert report["student"]["extract"] == "none"
    with pytest.raises(UsageError, match=r"does not consist of the teacher's heads.*--extract none"):
        exitkit.distill(output=tmp_path / "u", extract="impt", **given)


@pytest.mark.parametrize("family", ["distilbert", "electra"])
def test_other_families_learn_in_half_precision_and_load_in_plain_transformers(
    family: str, trained: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    of_family = {
        "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48},
        "electra": {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4},
    }
    names = {0: "negative", 1: "positive"}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), id2label=names, **of_family[family])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    exitkit.distill(
        teacher=str(tmp_path / "teacher"), output=tmp_path / "s", method="layers", student_width=24, precision="bf16",
        max_length=40, **{**QUICK, "max_train_samples": 64},
    )  # fmt: skip
    texts = ["a good film", "never again"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "s").eval()
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        plain = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits.softmax(dim=-1)
    given = exitkit.load(tmp_path / "s").predict(texts)
    assert [one["score"] for one in given] == pytest.approx(plain.max(dim=-1).values.tolist(), abs=1e-5)


def test_the_method_of_the_guide_is_a_plugin(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs/distillation.md").read_text()
    code = re.search(r"<!-- tests/test_distill.py runs this -->\n```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    module = ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", module)  # dataclasses look their module up
    exec(code[1], module.__dict__)
    registry = collect([(Plugin("guide", "guide", "guide", "1"), lambda: module)])
    assert registry.plugins[0].error is None
    whole = installed()
    for plugin in registry.plugins:
        whole.add("method", "last-states", registry.distiller("last-states"), plugin)
    monkeypatch.setattr("exitkit.distillation.work.installed", lambda: whole)
    report = exitkit.distill(teacher=str(trained), output=tmp_path / "s", method="last-states", **QUICK)
    (phase,) = report["phases"]
    assert (phase["phase"], phase["hidden"], phase["answers"]) == ("states", [[2, 4]], False)


def test_methods_are_listed_with_their_options() -> None:
    rows = {row["name"]: row for row in cli("methods")["methods"]}
    assert {"logits", "layers", "minilm"} <= set(rows)
    assert "layer_map = uniform" in rows["layers"]["options"]
    assert all(issubclass(installed().distiller(name), Distiller) for name in rows)
