"""What `exitkit distill` refuses: one clear message each, and nothing half-written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import distil_interrupted
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import exitkit
from exitkit.cli import app
from exitkit.configuration.config import Choice
from exitkit.errors import ExitkitError, UsageError
from exitkit.plugins import installed

QUICK = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 96}


def checkpoint(trained: Path, folder: Path, change: Callable) -> Path:
    """A plain checkpoint made from the teacher."""
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    change(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(trained).save_pretrained(folder)
    return folder


def unsupported(folder: Path, encoder: Path) -> Path:
    config = AutoConfig.for_model(
        "albert", vocab_size=2000, hidden_size=16, num_attention_heads=2, intermediate_size=16, embedding_size=8,
        num_hidden_layers=4, num_labels=2, id2label={0: "negative", 1: "positive"},
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


def spam(model) -> None:
    model.config.id2label = {0: "ham", 1: "spam"}
    model.config.label2id = {"ham": 0, "spam": 1}


def value(model) -> None:
    model.classifier = torch.nn.Linear(32, 1)
    model.num_labels = model.config.num_labels = 1
    model.config.problem_type = "regression"


def nan(model) -> None:
    model.classifier.weight.data[0, 0] = torch.nan


Make = Callable[[Path, Path, Path], list[object]]
"""The arguments of a case, from the teacher, an encoder and a folder to make things in."""


def flags(*given: object) -> Make:
    return lambda teacher, encoder, here: list(given)


def taught_by(change: Callable) -> Make:
    return lambda teacher, encoder, here: ["--teacher", checkpoint(teacher, here / "changed", change)]


def untokenized(teacher: Path, folder: Path) -> Path:
    AutoModelForSequenceClassification.from_pretrained(teacher).save_pretrained(folder)
    return folder


def cascade(teacher: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "cascade.yaml").write_text(f"models: [{teacher}, {teacher}]")
    return folder


def configured(**changed: object) -> Make:
    def make(teacher: Path, encoder: Path, here: Path) -> list[object]:
        told = json.loads((teacher / "config.json").read_text()) | changed
        (here / "config.json").write_text(json.dumps(told))
        return ["--student", here / "config.json", "--extract", "none"]

    return make


BAD: dict[str, tuple[Make, str]] = {
    "deeper than the teacher": (flags("--student-layers", 5), r"--student-layers 5: .*4 layers.*--extract none"),
    "wider than the teacher": (flags("--student-width", 48), r"--student-width 48: .*32 features"),
    "half a head": (flags("--student-width", 20), r"--student-width 20: .*multiple of 16"),
    "a map too short": (
        flags("--method", "layers", "--layer-map", "4"),
        "1 numbers for a student of 2 layers",
    ),
    "a map to no layer": (
        flags("--method", "layers", "--layer-map", "2,9"),
        "no layer 9; it has layers 1 to 4",
    ),
    "no map of that name": (flags("--method", "layers", "--layer-map", "skp"), "Did you mean 'skip'"),
    "a map where layers do not matter": (flags("--layer-map", "last"), "method 'logits' compares no layers"),
    "no such method": (flags("--method", "logit"), "unknown method 'logit'. Did you mean 'logits'"),
    "no such option": (flags("--set", "method.temprature=2"), "Did you mean 'temperature'"),
    "a share that is none": (flags("--set", "method.hard=2"), "method.hard: 2.0 is not a number from 0 to 1"),
    "no such exit": (flags("--exits", "1,3"), "it has layers 1 to 2"),
    "exits and none": (flags("--exits", "1", "--no-exits"), "exclude each other"),
    "two shapes": (lambda t, e, h: ["--student", e, "--student-layers", 2], "brings its own size"),
    "a piece of the teacher with weights of its own": (
        lambda t, e, h: ["--student", e, "--extract", "rand"],
        "has weights of its own",
    ),
    "no such student": (lambda t, e, h: ["--student", h / "nowhere"], r"--student .*no such folder"),
    "a size that is none": (flags("--cache-size", "lots"), "'lots' is not a size; write it like 4GB"),
    "no rows": (lambda t, e, h: ["--data", h / "none.csv"], "none.csv"),
    "no teacher there": (lambda t, e, h: ["--teacher", h / "nowhere"], r"--teacher .*no such folder"),
    "a teacher that is not trained": (lambda t, e, h: ["--teacher", e], "no fine-tuned classifier"),
    "a teacher that is the output": (
        lambda t, e, h: ["--teacher", t, "--output", t, "--overwrite"],
        "is the teacher",
    ),
    "a teacher of other labels": (
        taught_by(spam),
        r"answers ham, spam; the data has negative, positive.*--label-names",
    ),
    "a teacher of another task": (taught_by(value), r"is for regression, .* look like classification"),
    "a teacher with NaN": (taught_by(nan), "classifier.weight holds NaN"),
    "a family that cannot be cut": (
        lambda t, e, h: ["--teacher", unsupported(h / "a", e)],
        r"'albert'.*bert, camembert, distilbert, electra, roberta, xlm-roberta",
    ),
    "a family that tells no attention": (
        lambda t, e, h: ["--teacher", unsupported(h / "a", e), "--student", e, "--method", "layers"],
        "family 'albert' does not tell .*method.attention=false",
    ),
    "a family that tells no relations": (
        lambda t, e, h: ["--teacher", unsupported(h / "a", e), "--student", e, "--method", "minilm"],
        "family 'albert' does not tell .*--method logits",
    ),
    "relation heads that do not divide": (
        flags("--method", "minilm", "--set", "method.relation_heads=5"),
        "method.relation_heads: 5 does not divide",
    ),
    "a teacher without a tokenizer": (
        lambda t, e, h: ["--teacher", untokenized(t, h / "bare")],
        r"--teacher .*it has no tokenizer \(tokenizer.json",
    ),
    "a teacher that is a cascade": (lambda t, e, h: ["--teacher", cascade(t, h / "two")], "it is a cascade, which is"),
    "a teacher named in two ways": (
        lambda t, e, h: ["--teacher", t, "--teacher", f"{t}/"],
        "the same one is named twice",
    ),
    "a task that is not the teacher's": (flags("--task", "regression"), r"--task regression: .*is for classification"),
    "no such config": (flags("--student", "none.json"), "--student none.json: there is no such file"),
    "a config for fewer tokens": (configured(vocab_size=20), r"embeddings for 20 tokens, .* reads with \d+\. Set"),
    "a config that nothing can be built from": (configured(hidden_size=31), "no model can be built from this config"),
    "a config of an unknown function": (configured(hidden_act="foo"), "no model can be built from this config"),
    "a cache in the output": (lambda t, e, h: ["--cache", h / "out" / "kept"], "where the student grows"),
    "a cache beside the output's first files": (
        lambda t, e, h: ["--cache", h / "out.partial"],
        "where the student grows",
    ),
    "a seed too large": (flags("--seed", 2**32), r"--seed: \d+: input should be less than 4294967296"),
    "a wrong number of names": (flags("--label-names", "a,b,c"), "the teacher has 2 labels"),
}
FAILS = {"a teacher with NaN"}  # it was asked for rightly, so the code is 1


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_message_and_leaves_nothing(name: str, trained: Path, encoder: Path, tmp_path: Path) -> None:
    make, words = BAD[name]
    args = [str(one) for one in make(trained, encoder, tmp_path)]
    for flag, usual in (("--teacher", trained), ("--data", "demo:reviews"), ("--output", tmp_path / "out")):
        if flag not in args:
            args += [flag, str(usual)]
    result = CliRunner().invoke(app, ["distill", *args, "--max-train-samples", "64", "--json"])
    assert result.exit_code == (1 if name in FAILS else 2), result.output
    assert re.search(words, json.loads(result.stdout)["error"]), result.stdout
    assert not list(tmp_path.glob("out*")), "nothing half-written"
    assert (trained / "model.safetensors").exists()


def test_a_method_says_which_tasks_it_refuses(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = installed().distiller("logits")
    monkeypatch.setattr(logits, "refuses", classmethod(lambda cls, shape: "it wants words"))
    with pytest.raises(UsageError, match="--method logits is not for classification: it wants words"):
        exitkit.distill(teacher=str(trained), output=tmp_path / "s", **QUICK)


def test_a_full_disk_while_caching_is_one_message_and_can_be_resumed(trained: Path, tmp_path: Path) -> None:
    given = {"teacher": str(trained), "output": tmp_path / "s", **QUICK}
    (tmp_path / "file").write_text("")
    with pytest.raises(ExitkitError, match=r"cannot keep .* MB of the teacher's outputs there.*--cache-size"):
        exitkit.distill(cache=tmp_path / "file", **given)
    exitkit.distill(resume=True, **given)
    assert (tmp_path / "s" / "exitkit.yaml").exists()


def test_a_disk_that_is_full_from_the_start_is_one_message(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("exitkit.training.partial.save_file", full)
    with pytest.raises(ExitkitError, match=r"s\.partial.*cannot write there: I/O error: No space left.*--resume"):
        exitkit.distill(teacher=str(trained), output=tmp_path / "s", **QUICK)


def test_a_config_for_texts_without_types_is_refused_for_pairs(trained: Path, encoder: Path, tmp_path: Path) -> None:
    pairs = [{"text": f"film {number} is good", "text_pair": "it is good"} for number in range(24)]
    make = configured(type_vocab_size=1)
    given = {"teacher": str(trained), "unlabelled": None, "epochs": 1, "output": tmp_path / "s", "extract": "none"}
    student = str(make(trained, encoder, tmp_path)[1])
    with pytest.raises(UsageError, match=r"type_vocab_size is 1, .* 2 types\. Set type_vocab_size to 2"):
        exitkit.distill(data=pairs, student=student, **given)


def test_a_student_that_is_changed_meanwhile_is_not_gone_on_with(trained: Path, tmp_path: Path) -> None:
    student = checkpoint(trained, tmp_path / "student", lambda model: None)
    given = {"teacher": str(trained), "student": str(student), "output": tmp_path / "s", **QUICK}
    distil_interrupted(**given)
    checkpoint(trained, student, lambda model: model.classifier.weight.data.add_(1))
    with pytest.raises(UsageError, match="the weights of --student have changed"):
        exitkit.distill(resume=True, **given)


def test_a_family_that_nothing_is_cut_out_of_takes_a_config(encoder: Path, tmp_path: Path) -> None:
    teacher = unsupported(tmp_path / "a", encoder)
    for name, size, start in (("alike", 8, "tokens"), ("other", 4, "none")):
        config = AutoConfig.from_pretrained(teacher)
        config.num_hidden_layers, config.embedding_size = 2, size
        config.save_pretrained(tmp_path / name)
        given = {"teacher": str(teacher), "student": str(tmp_path / name), "output": tmp_path / f"{name}-s", **QUICK}
        assert exitkit.distill(**given)["student"]["extract"] == start
        with pytest.raises(UsageError, match=r"nothing can be cut out of the family 'albert'.*--extract tokens"):
            exitkit.distill(extract="impt", overwrite=True, **given)


def test_a_student_without_a_tokenizer_reads_with_the_teachers(trained: Path, tmp_path: Path) -> None:
    student = untokenized(trained, tmp_path / "student")
    exitkit.distill(teacher=str(trained), student=str(student), output=tmp_path / "s", **QUICK)
    ours, theirs = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (tmp_path / "s", trained))
    assert ours == theirs


@pytest.mark.parametrize(("names", "agreement"), [(("positive", "negative"), 1.0), (("ham", "spam"), None)])
def test_the_outputs_of_a_student_that_is_a_classifier_go_by_their_names(
    names: tuple[str, str], agreement: float | None, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def turned(model) -> None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
        for parameter in model.classifier.parameters():
            parameter.data = parameter.data.flip(0)

    student = checkpoint(trained, tmp_path / "student", turned)
    still = Choice(name="logits", learning_rate=0.0, head_learning_rate=0.0)
    told = exitkit.distill(
        teacher=str(trained), student=str(student), output=tmp_path / "s", method=still, no_exits=True, **QUICK
    )
    if agreement is not None:
        assert told["exits"][-1]["teacher_agreement"] == agreement
    else:
        assert "is for the labels ham, spam, and starts anew for negative, positive" in caplog.text


def test_labels_that_are_all_alike_do_not_matter_where_the_teacher_answers(trained: Path, tmp_path: Path) -> None:
    rows = [{"text": f"a good film {number}", "label": "positive"} for number in range(24)]
    told = exitkit.distill(teacher=str(trained), data=rows, output=tmp_path / "s", epochs=1)
    assert told["learned_from"]["labelled"] > 0


def test_a_student_that_gives_a_value_keeps_its_output(tmp_path: Path, encoder: Path) -> None:
    rows = [{"text": f"film {number} is good", "label": number / 24} for number in range(24)]
    teacher = tmp_path / "teacher"
    exitkit.train(model=str(encoder), data=rows, output=teacher, epochs=1)
    still = Choice(name="logits", learning_rate=0.0, head_learning_rate=0.0)
    given = {"data": rows, "epochs": 1, "method": still, "no_exits": True}
    exitkit.distill(teacher=str(teacher), student=str(teacher), output=tmp_path / "s", **given)
    before, after = (load_file(folder / "model.safetensors") for folder in (teacher, tmp_path / "s"))
    assert all(torch.equal(before[name], after[name]) for name in before)
