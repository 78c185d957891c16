"""Method `bilstm`: a student that is no transformer learns vectors of sentences or words, then answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artifacts import byte_level, byte_level_checkpoint
from datasets import Dataset
from helpers import cli, weights_of
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import exitkit
from exitkit.data.batches import batches, encode
from exitkit.data.sources import Rows, read
from exitkit.distillation import fit
from exitkit.distillation.lessons import Layout, Lessons
from exitkit.distillation.losses import units_loss
from exitkit.distillation.methods.bilstm import BiLSTM
from exitkit.distillation.student import students_of
from exitkit.distillation.teacher import Teacher, load_teachers
from exitkit.distiller import Lesson, Reads
from exitkit.engine.encoders.modeling_bilstm import BiLSTMConfig
from exitkit.engine.loop import full_pass
from exitkit.errors import UsageError
from exitkit.plugins import installed
from exitkit.policy import Shape
from exitkit.recipe import EveryExit
from exitkit.tasks import Classification
from exitkit.testing import tiny_model

CPU = torch.device("cpu")


def rows_of(split: str) -> list[dict]:
    rows = read("demo:reviews", split)
    return [{"text": row["text"], "label": rows.labels[row["label"]]} for row in rows.data]


QUICK = {"data": rows_of("train[:48]"), "epochs": 1}  # few, so that little is scored
WHOLE, NOTHING = 10**9, 0


# --- the loss


def test_vectors_are_compared_through_the_projection_and_averaged() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    projection = torch.nn.Linear(1, 2)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[1.0], [2.0]]))
        projection.bias.copy_(torch.tensor([0.0, 1.0]))
    # projected: [1, 3] and [2, 5]
    assert units_loss(student, teacher, projection).item() == pytest.approx((0 + 9 + 4 + 1) / 4)
    nobody = units_loss(student[:0], teacher[:0], projection)
    assert nobody.item() == 0
    nobody.backward()  # a batch of sentences without words is no end of training
    model = tiny_model()
    model.scaffold["projection"] = projection
    seen = EveryExit(
        torch.zeros(1, 2, 2), None, (1,), Classification(("a", "b")), model=model,
        lesson=Lesson(None, pooled=((student, teacher),)),
    )  # fmt: skip
    assert {name: loss.item() for name, loss in BiLSTM().losses("sentence", seen).items()} == {"sentence": 3.5}


def test_what_is_read_is_a_vector_of_each_units_last_states() -> None:
    student, teacher = Shape(2, 2, 2, 8, "classification"), Shape(6, 6, 2, 12, "classification")
    assert BiLSTM().reads("sentence", student, teacher) == Reads(False, pooled=((2, 6),))
    assert BiLSTM(vector="cls").reads("sentence", student, teacher).pooling == "cls"
    assert BiLSTM().reads("answers", student, teacher) == Reads()
    assert not BiLSTM().reads("sentence", student, teacher).tokenwise
    layout = Layout(classes=2, width=4, heads=0, hidden=(), scores=(), pooled=(5, 6))
    assert layout.parts(7, 1) == [2, 4, 4], "however long a sentence is"
    assert layout.parts(7, 3) == [6, 12, 12], "in tagging there is a vector of every word"


# --- what the teacher says of a batch


def teacher_of(folder: Path) -> Teacher:
    return load_teachers([str(folder)], installed(), CPU, None)[0]


def lessons(teacher: Teacher, rows: Rows, folder: Path, budget: int, pooling: str = "mean", **more: object) -> Lessons:
    tagging = "words" in rows.data.column_names
    encoded = [encode(rows, one.tokenizer, one.max_length, tagging) for one in (teacher, *more.values())]
    reads = {"sentence": Reads(False, pooled=((2, 4), (4, 4)), pooling=pooling)}
    tutor = Lessons([teacher], encoded, teacher.model.encoder, reads, folder, budget, CPU, **more)
    tutor.prepare("sentence")
    return tutor


def taught(tutor: Lessons, numbers: list[int], encoded: Dataset | None = None) -> Lesson:
    """The lesson of some rows to a student that is the teacher and reads as much of them, or what is `encoded`."""
    teacher = tutor.teachers[0]
    (batch,) = batches((encoded or tutor.encoded[0]).select(numbers), teacher.tokenizer, len(numbers))
    notes = tutor.notes("sentence")
    with torch.no_grad():
        full_pass(teacher.model, batch, notes.embedded, notes.between)
    return tutor.lesson("sentence", torch.tensor(numbers), batch, notes)


def states_of(folder: Path, text: str | list[str]) -> torch.Tensor:
    """Last states [n, d] by plain transformers, of a row that is alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, is_split_into_words=isinstance(text, list), return_tensors="pt"))[0][0]


ROWS = [7, 3, 19, 12]


def bare(data: str, split: str) -> Rows:
    return read(data, split, task="tagging" if data == "demo:tags" else None, use_labels="ignored")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_sentences_vector_is_that_of_the_sentence_alone_with_and_without_cache(
    pooling: str, trained: Path, tmp_path: Path
) -> None:
    teacher, rows = teacher_of(trained), bare("demo:reviews", "train[:20]")
    given = {budget: taught(lessons(teacher, rows, tmp_path, budget, pooling), ROWS) for budget in (WHOLE, NOTHING)}
    for place, row in enumerate(ROWS):
        states = states_of(trained, rows.data["text"][row])
        alone = states.mean(dim=0) if pooling == "mean" else states[0]
        for lesson in given.values():
            assert torch.allclose(lesson.pooled[0][1][place], alone, atol=1e-5), "in the batch's order, without padding"
    for one, other in zip(given[WHOLE].pooled, given[NOTHING].pooled, strict=True):
        assert torch.allclose(one[1], other[1], atol=1e-6)
    own, _ = given[WHOLE].pooled[1]
    firsts = torch.stack([states_of(trained, rows.data["text"][row])[0] for row in ROWS])
    assert torch.allclose(own, firsts, atol=1e-5), "the student's is what its last head reads, here [CLS]"
    assert given[WHOLE].answered is None
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 20 * 32 * 4


def test_words_have_vectors_of_their_own_and_only_words_that_both_see_are_compared(
    tagger: Path, tmp_path: Path
) -> None:
    teacher, rows = teacher_of(tagger), bare("demo:tags", "train[:20]")
    tutor = lessons(teacher, rows, tmp_path, WHOLE)
    whole = taught(tutor, ROWS)
    states = torch.cat([states_of(tagger, rows.data["words"][row])[1:-1] for row in ROWS])
    assert torch.allclose(whole.pooled[1][1], states, atol=1e-5), "every demo word is one piece"
    assert torch.allclose(whole.pooled[1][0], states, atol=1e-5)
    short = lessons(replace(teacher, max_length=6), rows, tmp_path, NOTHING)
    lesson = taught(short, ROWS, tutor.encoded[0])
    assert lesson.answered.any()
    assert not lesson.answered.all()
    ((_, _), (own, theirs)) = lesson.pooled
    assert own.shape == theirs.shape == (int(lesson.answered.sum()), 32)
    assert torch.allclose(own, states[lesson.answered], atol=1e-5)


# --- end to end


def test_a_bilstm_is_calibrated_benchmarked_and_asked_like_any_other_student(trained: Path, tmp_path: Path) -> None:
    folder, data, other = tmp_path / "student", tmp_path / "reviews.jsonl", tmp_path / "other.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of("train[:100]")))
    other.write_text("".join(json.dumps(row) + "\n" for row in rows_of("test[:40]")))
    report = cli(
        "distill", "--teacher", trained, "--data", data, "--output", folder, "--method", "bilstm",
        "--student-width", "24", "--epochs", "1",
    )  # fmt: skip
    assert [one["layer"] for one in report["exits"]] == [1, 2]
    first, second = report["phases"]
    assert (first["phase"], first["pooled"], first["answers"]) == ("sentence", [[2, 4]], False)
    assert (second["phase"], second["pooled"], second["answers"]) == ("answers", [], True)
    assert first["cached"] == {"rows": 90, "of": 90, "bytes": 90 * 32 * 4}
    student = report["student"]
    assert {name: student[name] for name in ("layers", "width", "heads", "inner", "extract")} == {
        "layers": 2, "width": 24, "heads": 0, "inner": 0, "extract": "tokens",
    }  # fmt: skip
    assert "from_layers" not in student
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    about = cli("inspect", folder)
    assert (about["family"], about["layers"], about["width"]) == ("exitkit-bilstm", 2, 24)
    assert cli("calibrate", folder, "--target-speedup", "1.2x", "--currency", "layers")["policy"] == "entropy"
    asked = ["--data", other, "--split", "train", "--rounds", "1"]
    found = cli("benchmark", folder, "--output", tmp_path / "report", *asked)
    assert "plain transformers, padded" in [one["name"] for one in found["baselines"]]
    texts = read("demo:reviews", "test[:20]").data["text"][:]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cli(
        "predict", folder, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl",
        "--policy", "entropy", "--set", "policy.threshold=off",
    )  # fmt: skip
    given = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        plain = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(dim=-1)
    assert [one["label"] for one in given] == [model.config.id2label[number] for number in plain.argmax(-1).tolist()]
    assert [one["score"] for one in given] == pytest.approx(plain.max(dim=-1).values.tolist(), abs=1e-5)
    cli("cascade", folder, trained, "--output", tmp_path / "cascade")
    answers = exitkit.load(tmp_path / "cascade").predict(texts, policy={"name": "cascade", "threshold": 0.5})
    assert [one["label"] for one in answers] == [one["label"] for one in given]


def test_a_bilstm_tags_words_and_its_sentences_exit(tagger: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    report = exitkit.distill(
        teacher=str(tagger), data="demo:tags", output=folder, method="bilstm", student_width=16, epochs=1,
        max_train_samples=32,
    )  # fmt: skip
    assert (report["task"], report["learned_from"]["words_lost"]) == ("tagging", 0)
    assert report["phases"][0]["cached"]["bytes"] == report["learned_from"]["words"] * 32 * 4
    with pytest.raises(UsageError, match="layers of this model's family compute sentences as a whole"):
        exitkit.calibrate(folder, target_speedup=1.2, currency="layers", policy="token-window")
    sentences = read("demo:tags", "test[:12]").data["words"][:]
    model = exitkit.load(folder)
    early = model.predict(sentences, policy={"name": "sentence", "threshold": 1.0})
    assert {exit for one in early for exit in one["exit"]} == {1}
    full = model.predict(sentences, batch_size=5)
    stock, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for words, one in zip(sentences, full, strict=True):
        with torch.no_grad():
            logits = stock.eval()(**tokenizer(words, is_split_into_words=True, return_tensors="pt")).logits
        plain = [stock.config.id2label[number] for number in logits[0, 1:-1].argmax(-1).tolist()]
        assert one["tags"] == plain, "every demo word is one piece"


def test_a_student_starts_with_its_teachers_tokens_and_learns_vectors_without_a_task(
    trained: Path, tmp_path: Path
) -> None:
    """With learning rates of zero everywhere but in the phase `sentence`, no head has moved, and vectors have."""
    still = {"learning_rate": 0.0, "answers_learning_rate": 0.0, "head_learning_rate": 0.0}
    for name, rate in (("still", 0.0), ("moved", 1e-2)):
        exitkit.distill(
            teacher=str(trained), output=tmp_path / name, method={"name": "bilstm", **still, "learning_rate": rate},
            **QUICK,
        )  # fmt: skip
    still, moved = weights_of(tmp_path / "still"), weights_of(tmp_path / "moved")
    theirs = load_file(trained / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(still["bilstm.embeddings.tokens.weight"], theirs)
    changed = {name.split(".")[0] for name in still if not torch.equal(still[name], moved[name])}
    assert changed == {"bilstm"}


class Killed(BaseException):
    """Nothing catches this."""


def test_an_interrupted_run_goes_on_to_the_same_bits_and_without_cache_to_rounding(
    trained: Path, tmp_path: Path
) -> None:
    given = {"teacher": str(trained), "method": "bilstm", "student_width": 16, **QUICK}
    exitkit.distill(output=tmp_path / "whole", **given)
    whole = weights_of(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:

        def dies(*args: object) -> None:
            raise Killed

        patch.setattr("exitkit.distillation.then_answers.answer_losses", dies)
        with pytest.raises(Killed):
            exitkit.distill(output=tmp_path / "resumed", **given)
    exitkit.distill(output=tmp_path / "resumed", resume=True, **given)
    exitkit.distill(output=tmp_path / "uncached", cache_size="0", **given)
    for name, equal in (("resumed", torch.equal), ("uncached", lambda a, b: torch.allclose(a, b, atol=1e-4))):
        found = weights_of(tmp_path / name)
        assert all(equal(found[key], whole[key]) for key in whole), name


def test_another_model_may_give_the_vectors(trained: Path, encoder: Path, tmp_path: Path) -> None:
    """Of another width and with other tokens than teacher and student; its answers are nobody's."""
    letters = byte_level_checkpoint(tmp_path / "letters", byte_level())
    for number, source in enumerate((encoder, letters)):
        method = {"name": "bilstm", "sentence_encoder": str(source)}
        report = exitkit.distill(
            teacher=str(trained), output=tmp_path / str(number), method=method, no_exits=True, **QUICK
        )
        phase = report["phases"][0]
        assert phase["pooled"] == [[2, 4 if source == encoder else 2]]
        assert phase["cached"]["bytes"] == phase["cached"]["rows"] * 4 * (32 if source == encoder else 16)
        assert len(report["exits"]) == 1


def test_any_student_may_learn_vectors_and_a_bilstm_may_come_as_a_config_and_be_trained(
    trained: Path, encoder: Path, tmp_path: Path
) -> None:
    report = exitkit.distill(
        teacher=str(trained), student=str(encoder), output=tmp_path / "bert", method="bilstm", **QUICK
    )
    assert report["student"]["heads"] == 2
    vocabulary = len(AutoTokenizer.from_pretrained(trained))
    BiLSTMConfig(vocab_size=vocabulary, embedding_size=32, hidden_size=12, num_hidden_layers=3).save_pretrained(
        tmp_path / "shape"
    )
    given = {"teacher": str(trained), **QUICK}
    report = exitkit.distill(student=str(tmp_path / "shape"), output=tmp_path / "config", **given)
    assert (report["student"]["layers"], report["student"]["extract"]) == (3, "tokens"), "by `logits`, as any other"
    exitkit.train(model=str(tmp_path / "config"), output=tmp_path / "trained", **QUICK)
    assert exitkit.load(tmp_path / "trained").artifact.model.exits == (1, 2, 3)


def test_a_speedup_chooses_a_bilstms_size_by_its_own_layer_times(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_distill_fit import LayerTimes, Line, Times, np

    from exitkit.configuration.config import DistillConfig

    def line(per_token: float) -> Line:
        return Line(np.array([1.0]), np.array([0.0]), np.array([per_token]))

    def measure(model, batches, batch_size):  # a layer of the student takes half the time of one of its teacher
        takes = (0.5 if model.stock.config.model_type == "exitkit-bilstm" else 1.0) * (model.shape.width / 32) ** 2
        return LayerTimes(line(0.0), line(takes), line(0.0), line(0.0))

    def interleaved(runners, batches, rounds, device, advance):
        for run in runners.values():
            run(batches[0])
        return Times({"student": np.ones((rounds, 1)), "teacher": np.full((rounds, 1), 100.0)})

    monkeypatch.setattr("exitkit.calibration.layer_time.measure", measure)
    monkeypatch.setattr("exitkit.measuring.clock.interleaved", interleaved)
    teacher, registry = teacher_of(trained), installed()
    students = students_of(BiLSTM(), teacher, registry)
    for target, layers, width in (("2x", 4, 32), ("4x", 2, 32), ("5x", 2, 28)):
        found = fit.fit(
            DistillConfig(target_speedup=target), teacher, students, read("demo:reviews", "train[:40]"), teacher.task,
            registry,
        )  # fmt: skip
        assert (found.layers, found.width) == (layers, width), target


# --- refused

BAD: dict[str, tuple[dict, str]] = {
    "a width without a half": (
        {"student_width": 33},
        r"--student-width 33: half of a BiLSTM's features come from each direction. Use a multiple of 2",
    ),
    "a piece of the teacher": (
        {"extract": "impt"},
        r"--extract impt: this method builds students of the family 'exitkit-bilstm', .*--extract tokens.*none",
    ),
    "a map of layers": ({"layer_map": "uniform"}, r"--layer-map uniform: method 'bilstm' compares no layers"),
    "no such vector": ({"method": {"name": "bilstm", "vector": "max"}}, r"unknown method.vector 'max'.*cls, mean"),
    "a vector that is no name": ({"method": {"name": "bilstm", "vector": 3}}, r"unknown method.vector '3'"),
    "no such encoder": (
        {"method": {"name": "bilstm", "sentence_encoder": "./nowhere"}},
        r"method.sentence_encoder ./nowhere: there is no such folder",
    ),
    "an exit that is no layer": ({"exits": "1,3"}, r"it has layers 1 to 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_message_and_leaves_nothing(name: str, trained: Path, tmp_path: Path) -> None:
    given, words = BAD[name]
    with pytest.raises(UsageError, match=words):
        exitkit.distill(teacher=str(trained), output=tmp_path / "out", **{"method": "bilstm", **QUICK, **given})
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_several_teachers_have_no_common_vector(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "other")
    with pytest.raises(UsageError, match="looks into its teacher, whose layers cannot be averaged"):
        exitkit.distill(
            teacher=[str(trained), str(tmp_path / "other")], output=tmp_path / "s", method="bilstm", **QUICK
        )


def test_tokens_of_another_table_do_not_fit(trained: Path, tmp_path: Path) -> None:
    BiLSTMConfig(vocab_size=9, embedding_size=32, hidden_size=12).save_pretrained(tmp_path / "shape")
    given = {"teacher": str(trained), "student": str(tmp_path / "shape"), "output": tmp_path / "s", **QUICK}
    with pytest.raises(UsageError, match=r"--extract tokens: .*embeddings is \[9, 32\], and the teacher's \[\d+, 32\]"):
        exitkit.distill(extract="tokens", **given)
    (tmp_path / "shape" / "config.json").write_text('{"model_type": "exitkit-bilstm", "hidden_size": 13}')
    with pytest.raises(UsageError, match=r"--student .*hidden_size is 13.*use an even number"):
        exitkit.distill(**given)
