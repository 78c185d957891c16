"""Distilling taggers: teachers answer word by word, whatever tokens either side cuts words into."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from artifacts import byte_level, byte_level_checkpoint
from helpers import cli
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, pad
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerBase

import exitkit
from exitkit.configuration.config import Training
from exitkit.data.batches import batches, encode
from exitkit.data.sources import Rows, read
from exitkit.data.splits import training_and_calibration
from exitkit.distillation.extraction import importance
from exitkit.distillation.fit import _timed
from exitkit.distillation.lessons import Lessons
from exitkit.distillation.losses import answer_losses
from exitkit.distillation.methods.logits import Logits
from exitkit.distillation.store import Store
from exitkit.distillation.student import _judged
from exitkit.distillation.teacher import Teacher, load_teachers
from exitkit.distillation.work import _teacher_answers
from exitkit.distiller import Lesson, Reads
from exitkit.engine.loop import full_pass
from exitkit.errors import UsageError
from exitkit.plugins import installed
from exitkit.recipe import EveryExit
from exitkit.tasks import Tagging
from exitkit.training.phases import Job, all_rows
from exitkit.training.train import unlabelled_rows

CPU = torch.device("cpu")
QUICK = {"data": "demo:tags", "epochs": 1, "max_train_samples": 96}
TASK = Tagging(("O", "B-X", "I-X"))
STUDENT = torch.tensor(
    [
        [[1.0, 0.0, -1.0], [0.0, 0.5, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.5, 2.0, 0.0], [1.0, 1.0, 3.0], [0.0, 9.0, 0.0], [1.0, 0.0, 0.0]],
    ]
)  # [E, U, C]
TEACHER = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # it sees no third word


def kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> float:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return float((p * (p / q).log()).sum()) * temperature**2


def seen(labelled: list[bool] | None = None, answered: list[bool] | None = None) -> EveryExit:
    return EveryExit(
        STUDENT,
        torch.tensor([1, 0, 2, 0]),
        layers=(1, 3),
        task=TASK,
        labelled=None if labelled is None else torch.tensor(labelled),
        lesson=Lesson(TEACHER, None if answered is None else torch.tensor(answered)),
    )


# --- losses


def test_every_word_has_the_same_say_and_one_that_the_teacher_does_not_see_has_none() -> None:
    found = answer_losses(seen(answered=[True, True, False, True]), "soft", 2.0, 0.3)
    words = [0, 1, 3]
    soft = [np.mean([kl(TEACHER[word], logits[word], 2.0) for word in words]) for logits in STUDENT]
    hard = [float(cross_entropy(logits[words], torch.tensor([1, 0, 0]))) for logits in STUDENT]
    by_hand = {
        "taught_1": 1 / 4 * 0.7 * soft[0], "taught_2": 3 / 4 * 0.7 * soft[1],
        "exit_1": 1 / 4 * 0.3 * hard[0], "exit_2": 3 / 4 * 0.3 * hard[1],
    }  # fmt: skip
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(by_hand, rel=1e-5)


def test_words_of_sentences_without_tags_learn_from_the_teacher_alone() -> None:
    found = answer_losses(seen([True, True, False, False], [True, True, False, True]), "soft", 1.0, 0.4)
    soft = [kl(TEACHER[word], STUDENT[1, word], 1.0) for word in (0, 1, 3)]
    assert found["taught_2"].item() == pytest.approx(3 / 4 * (0.6 * soft[0] + 0.6 * soft[1] + soft[2]) / 3, rel=1e-5)
    hard = float(cross_entropy(STUDENT[1, :2], torch.tensor([1, 0]), reduction="sum"))
    assert found["exit_2"].item() == pytest.approx(3 / 4 * 0.4 * hard / 3, rel=1e-5)


@pytest.mark.parametrize("words", [0, 3])
def test_a_batch_without_a_word_to_learn_has_no_loss_and_a_gradient(words: int) -> None:
    logits = torch.randn(2, words, 3, requires_grad=True)
    lesson = Lesson(torch.zeros(words, 3), torch.zeros(words, dtype=torch.bool))
    nobody = EveryExit(logits, torch.zeros(words, dtype=torch.long), (1, 2), TASK, lesson=lesson)
    loss = Logits().combine(Logits().losses("answers", nobody))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


# --- what the teacher says of a batch


@pytest.fixture(scope="module")
def teacher(tagger: Path) -> Teacher:
    return load_teachers([str(tagger)], installed(), CPU, None)[0]


SENTENCES = [
    ["the", "plot", "was", "good"],
    ["never"],
    [],
    ["the", "film", "was", "not", "good", "and", "the", "music", "was", "loud"],
    ["a", "\u200b", "dull", "story"],  # the second word has no token
    ["great", "cast"],
]
WHOLE, NOTHING = 10**9, 0


def rows_of(sentences: list[list[str]] = SENTENCES) -> Rows:
    return read([{"tokens": words} for words in sentences], task="tagging", use_labels="ignored")


def lessons(teachers: list[Teacher], folder: Path, budget: int = NOTHING) -> Lessons:
    encoded = [encode(rows_of(), one.tokenizer, one.max_length, tagging=True) for one in teachers]
    tutor = Lessons(teachers, encoded, teachers[0].model.encoder, {"answers": Reads()}, folder, budget, CPU)
    tutor.prepare("answers")
    return tutor


def taught(
    tutor: Lessons, rows: list[int], tokenizer: PreTrainedTokenizerBase | None = None, longest: int = 64, wider: int = 0
) -> Lesson:
    """The lesson of some rows, for a student with this tokenizer."""
    tokenizer = tokenizer or tutor.teachers[0].tokenizer
    (batch,) = batches(encode(rows_of(), tokenizer, longest, tagging=True).select(rows), tokenizer, len(rows))
    fill = {"words": -1}
    batch = {name: pad(tensor, (0, wider), value=fill.get(name, 0)) for name, tensor in batch.items()}
    return tutor.lesson("answers", torch.tensor(rows), batch, tutor.notes("answers"))


def alone(teacher: Teacher, row: int) -> torch.Tensor:
    """What the teacher says of the words of one sentence [W, C] that it sees."""
    encoded = encode(rows_of([SENTENCES[row]]), teacher.tokenizer, teacher.max_length, tagging=True)
    (batch,) = batches(encoded, teacher.tokenizer, 1)
    return teacher.answer(batch)


def test_answers_come_word_by_word_in_the_batchs_order_whatever_the_padding(teacher: Teacher, tmp_path: Path) -> None:
    tutor = lessons([teacher], tmp_path)
    order = [3, 1, 2, 5, 4, 0]
    expected = torch.cat([alone(teacher, row) for row in order])
    assert len(expected) == 10 + 1 + 0 + 2 + 3 + 4
    for wider in (0, 9):
        lesson = taught(tutor, order, wider=wider)
        assert lesson.answered is None
        assert torch.allclose(lesson.logits, expected, atol=1e-5)
    apart = torch.cat([taught(tutor, [row]).logits for row in order])
    assert torch.allclose(apart, expected, atol=1e-5), "batch mates do not matter"


def test_the_loss_of_a_batch_is_that_of_its_words_whatever_the_padding(teacher: Teacher, tmp_path: Path) -> None:
    """A student's loss on three sentences together, padded further, and sentence by sentence."""
    tutor, model = lessons([teacher], tmp_path), teacher.whole
    encoded = encode(rows_of(), teacher.tokenizer, 64, tagging=True)

    def loss(rows: list[int], wider: int = 0) -> tuple[float, int]:
        (batch,) = batches(encoded.select(rows), teacher.tokenizer, len(rows))
        batch = {key: pad(value, (0, wider), value=-1 if key == "words" else 0) for key, value in batch.items()}
        with torch.no_grad():
            logits = full_pass(model, batch).logits
        lesson = tutor.lesson("answers", torch.tensor(rows), batch, tutor.notes("answers"))
        found = EveryExit(logits, None, model.exits, teacher.task, lesson=lesson)
        return float(Logits().combine(Logits().losses("answers", found))), logits.shape[1]

    together, words = loss([0, 3, 1])
    assert words == 15
    assert together > 1e-3, "exits below the last do not say what the teacher says"
    assert loss([0, 3, 1], wider=11)[0] == pytest.approx(together, rel=1e-4)
    apart = [loss([row]) for row in (0, 3, 1)]
    assert sum(value * count for value, count in apart) / 15 == pytest.approx(together, rel=1e-4)


def test_with_and_without_cache_answers_are_the_same(teacher: Teacher, tmp_path: Path) -> None:
    order = [3, 1, 2, 5, 4, 0]
    part = 4 * teacher.task.outputs * (0 + 1 + 2 + 3)
    tutors = {budget: lessons([teacher], tmp_path / str(budget), budget) for budget in (WHOLE, part, NOTHING)}
    assert [tutors[budget].told("answers")["bytes"] for budget in tutors] == [
        4 * teacher.task.outputs * 20, part, 0,
    ]  # fmt: skip
    given = [taught(tutor, order).logits for tutor in tutors.values()]
    assert all(torch.allclose(given[0], other, atol=1e-5) for other in given[1:])


def test_rows_without_words_need_no_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.f32", [0, 3, 0], 0)
    store.fill(lambda rows: pytest.fail("there is nothing to ask"))
    assert store.read(0).shape == (0,)
    assert store.read(1) is None
    assert not list(tmp_path.iterdir())


def test_other_tokens_are_matched_word_by_word_and_cut_words_are_not_answered(teacher: Teacher, tmp_path: Path) -> None:
    """The student reads letters, the teacher words; each loses some."""
    tokenizer = byte_level()
    tutor = lessons([teacher], tmp_path)
    lesson = taught(tutor, [0, 4], tokenizer)
    said = [alone(teacher, row) for row in (0, 4)]
    assert lesson.answered.tolist() == [True] * 4 + [True, False, True, True], "the student does read the odd word"
    assert torch.allclose(lesson.logits[lesson.answered], torch.cat(said), atol=1e-5)
    assert not lesson.logits[~lesson.answered].any()
    cut = taught(tutor, [0, 4], tokenizer, longest=8)  # the, plot, w(as); a, the odd one, dull
    assert cut.answered.tolist() == [True] * 3 + [True, False, True]
    assert torch.allclose(cut.logits[cut.answered], torch.cat([said[0][:3], said[1][:2]]), atol=1e-5)
    short = load_teachers([teacher.source], installed(), CPU, 6)  # [CLS] and four words [SEP]
    few = taught(lessons(short, tmp_path), [3])
    assert few.answered.tolist() == [True] * 4 + [False] * 6
    assert torch.allclose(few.logits[:4], alone(short[0], 3), atol=1e-5)


@pytest.fixture(scope="module")
def turned(tagger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain checkpoint: the tagger with its tags in another order, and no longer sure of anything."""
    folder = tmp_path_factory.mktemp("turned")
    model = AutoModelForTokenClassification.from_pretrained(tagger)
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0) / 2)
        model.classifier.bias.copy_(model.classifier.bias.flip(0) / 2)
    model.config.id2label = dict(enumerate(names[::-1]))
    model.config.label2id = {name: number for number, name in enumerate(names[::-1])}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tagger).save_pretrained(folder)
    return folder


def test_a_plain_checkpoint_teaches_by_the_names_of_its_tags(teacher: Teacher, turned: Path, tmp_path: Path) -> None:
    (plain,) = load_teachers([str(turned)], installed(), CPU, None)
    assert plain.task == Tagging(teacher.task.labels[::-1])
    assert plain.whole.pooling == "cls"
    assert torch.allclose(alone(plain, 0).flip(1), alone(teacher, 0) / 2, atol=1e-5)


def test_several_teachers_are_averaged_over_the_words_that_all_see(tagger: Path, turned: Path, tmp_path: Path) -> None:
    pair = load_teachers([str(tagger), str(turned)], installed(), CPU, None)
    lesson = taught(lessons(pair, tmp_path), [3, 0])
    expected = torch.cat([alone(pair[0], 3), alone(pair[0], 0)])
    assert torch.allclose(lesson.logits, 0.75 * expected, atol=1e-5)
    short = [pair[0], load_teachers([str(turned)], installed(), CPU, 6)[0]]
    few = taught(lessons(short, tmp_path), [3, 0])
    assert few.answered.tolist() == [True] * 4 + [False] * 6 + [True] * 4


def test_a_word_that_a_teacher_does_not_see_is_answered_by_the_fallback(tagger: Path, turned: Path) -> None:
    pair = load_teachers([str(tagger), str(turned)], installed(), CPU, None)
    task, rows = pair[0].task, read("demo:tags", "test[:20]", task=pair[0].task)
    whole = _teacher_answers(pair, rows, task, CPU)
    assert [len(one) for one in whole] == [len(words) for words in rows.data["words"][:]]
    first = _teacher_answers(pair[:1], rows, task, CPU)
    assert all((one == other).all() for one, other in zip(whole, first, strict=True)), "the second agrees"
    short = [pair[0], load_teachers([str(turned)], installed(), CPU, 6)[0]]
    assert all((one[4:] == task.fallback).all() for one in _teacher_answers(short, rows, task, CPU))


def test_parts_are_judged_by_words_and_a_batch_without_any_judges_nothing(teacher: Teacher) -> None:
    rows = read("demo:tags", "test[:8]", task=teacher.task)
    ((batch, labels),) = _judged(rows, teacher)
    assert len(labels) == sum(map(len, rows.data["label"][:]))
    found = importance(teacher.model, [(batch, labels)], teacher.task)
    with torch.enable_grad():  # by hand: the derivative by one mask on the whole residual stream
        mask = torch.ones(teacher.model.shape.width, requires_grad=True)
        logits = full_pass(
            teacher.model, batch,
            lambda stream: stream.carrying(stream.hidden * mask),
            lambda index, before, after: after.carrying(after.hidden * mask),
        ).logits[-1]  # fmt: skip
        cross_entropy(logits, labels).backward()
    assert torch.allclose(found.hidden, mask.grad.abs(), atol=1e-5)
    (wordless,) = batches(encode(rows_of([[]]), teacher.tokenizer, 8, tagging=True), teacher.tokenizer, 1)
    assert not importance(teacher.model, [(wordless, None)], teacher.task).hidden.any()


# --- rows


def test_unlabelled_sentences_have_blank_tags_for_every_word_that_has_a_token(teacher: Teacher) -> None:
    some = read("demo:tags", "train[:3]", task=teacher.task)
    job = Job(teacher.model, teacher.tokenizer, Logits(), some, teacher.task, 8, None, Training(), CPU, rows_of())
    rows = all_rows(job)
    assert rows["labelled"][:] == [1] * 3 + [0] * 6
    assert [len(tags) for tags in rows["labels"][3:]] == [4, 1, 0, 6, 3, 2], "eight tokens are six words"
    assert [len(words) for words in rows["words"][:]] == [len(ids) for ids in rows["input_ids"][:]]


@pytest.mark.parametrize("form", ["raw text", "lists", "other column", "tagged", "words a line"])
def test_unlabelled_texts_are_cut_into_words_by_the_rule_of_tagging(form: str, tmp_path: Path) -> None:
    expected = [["A", "dull", "plot", ",", "isn't", "it", "?"], ["Fine", "."]]
    raw = ["A dull plot, isn't it?", "Fine."]
    lines = {
        "raw text": ("jsonl", [json.dumps({"text": text}) for text in raw]),
        "lists": ("jsonl", [json.dumps({"tokens": words, "tags": "whatever"}) for words in expected]),
        "other column": ("jsonl", [json.dumps({"words": words}) for words in expected]),
        "tagged": ("conll", ["\n".join(f"{word} STRANGE" for word in words) + "\n" for words in expected]),
        "words a line": ("conll", ["\n".join(words) + "\n" for words in expected]),
    }
    suffix, written = lines[form]
    file = tmp_path / f"more.{suffix}"
    file.write_text("\n".join(written) + "\n")
    found = unlabelled_rows(str(file), training_and_calibration("demo:tags"))
    assert found.data["words"][:] == expected
    assert found.task is None


def test_a_raw_text_that_is_kept_back_is_left_out(tmp_path: Path) -> None:
    data = training_and_calibration("demo:tags")
    kept_back = data.calibration.data["words"][0]
    file = tmp_path / "more.jsonl"
    texts = [re.sub(" ([.,!?])", r"\1", " ".join(kept_back)), "something else"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert unlabelled_rows(str(file), data).data["words"][:] == [["something", "else"]]


# --- end to end


@pytest.mark.parametrize("method", ["logits", "layers", "minilm"])
def test_a_tagging_student_is_calibrated_benchmarked_and_asked_like_any_other(
    method: str, tagger: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    report = cli(
        "distill", "--teacher", tagger, "--data", "demo:tags", "--output", folder, "--method", method,
        "--student-layers", "2", "--student-width", "16", "--epochs", "1", "--max-train-samples", "200",
    )  # fmt: skip
    assert report == json.loads((folder / "metrics.json").read_text())
    assert (report["task"], report["metric"], report["scheme"]) == ("tagging", "span_f1", "IOB2")
    assert (report["words"], report["words_lost"]) == (7742, 0)
    assert [one["layer"] for one in report["exits"]] == [1, 2]
    assert all(0 < one["teacher_agreement"] <= 1 for one in report["exits"])
    assert 0 < report["teacher"]["score"] <= 1
    train = training_and_calibration("demo:tags", seed=42, max_train_samples=200).train
    words = sum(map(len, train.data["words"][:]))
    assert report["learned_from"] == {"labelled": 200, "unlabelled": 0, "words": words, "words_lost": 0}
    assert {file.name for file in folder.iterdir()} == {file.name for file in tagger.iterdir()}
    if method != "logits":
        return
    assert (
        cli("calibrate", folder, "--target-speedup", "1.2x", "--currency", "layers", "--split", "test[:80]")["policy"]
        == "token-window"
    )
    rows = cli("benchmark", folder, "--split", "test[400:440]", "--output", tmp_path / "report", "--rounds", "1")
    assert rows["runs"]
    sentences = read("demo:tags", "test[:6]").data["words"][:]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"tokens": one}) + "\n" for one in sentences))
    cli(
        "predict", folder, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--policy", "fixed",
        "--set", "policy.exit=2",
    )  # fmt: skip
    given = [json.loads(line)["tags"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    stock, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for words, tags in zip(sentences, given, strict=True):
        with torch.no_grad():
            logits = stock.eval()(**tokenizer(words, is_split_into_words=True, return_tensors="pt")).logits
        plain = [stock.config.id2label[number] for number in logits[0, 1:-1].argmax(-1).tolist()]
        assert tags == plain, "every demo word is one piece"


def test_a_student_of_the_teachers_size_that_learns_nothing_is_the_teacher(tagger: Path, tmp_path: Path) -> None:
    still = {"name": "logits", "learning_rate": 0.0, "head_learning_rate": 0.0}
    report = exitkit.distill(teacher=str(tagger), output=tmp_path / "s", student_layers=4, method=still, **QUICK)
    for name in ("model.safetensors", "exits.safetensors"):
        ours, theirs = load_file(tmp_path / "s" / name), load_file(tagger / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert report["exits"][-1]["teacher_agreement"] == 1
    assert report["exits"][-1]["score"] == report["teacher"]["score"]


def test_students_learn_to_say_what_the_teacher_says(tagger: Path, tmp_path: Path) -> None:
    """Without a tag, from random weights; answering `O` alone agrees far less."""
    texts = read("demo:tags", "train[:900]").data["words"][:]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": " ".join(words)}) + "\n" for words in texts))
    method = {"name": "logits", "learning_rate": 2e-3, "head_learning_rate": 2e-3}
    report = exitkit.distill(
        teacher=str(tagger), unlabelled=str(file), output=tmp_path / "s", extract="none", method=method, epochs=4
    )
    assert report["metric"] == "agreement"
    assert report["learned_from"]["labelled"] == 0
    assert "score" not in report["teacher"]
    before = exitkit.distill(
        teacher=str(tagger), unlabelled=str(file), output=tmp_path / "t", extract="none", epochs=4,
        method={"name": "logits", "learning_rate": 0.0, "head_learning_rate": 0.0},
    )  # fmt: skip
    untaught, after = (one["exits"][-1]["teacher_agreement"] for one in (before, report))
    assert after > max(0.75, untaught + 0.1)


def test_tags_join_where_there_are_some(tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word knows whether its sentence has tags."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"the plot was good {n}"}) + "\n" for n in range(40)))
    found: list[EveryExit] = []
    right = Logits.losses

    def watched(self, phase: str, seen: EveryExit):
        found.append(seen)
        return right(self, phase, seen)

    monkeypatch.setattr(Logits, "losses", watched)
    report = exitkit.distill(teacher=str(tagger), output=tmp_path / "s", unlabelled=str(file), **QUICK)
    assert report["learned_from"]["unlabelled"] == 40
    assert all(len(seen.labels) == len(seen.labelled) == seen.logits.shape[1] for seen in found)
    assert sum(int((~seen.labelled).sum()) for seen in found) == 40 * 5
    assert sum(len(seen.labels) for seen in found) == report["learned_from"]["words"]
    assert not any(seen.labels[~seen.labelled].any() for seen in found), "blank"


def test_a_student_with_letters_for_tokens_learns_from_answers_only(
    tagger: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = byte_level_checkpoint(tmp_path / "letters", byte_level())
    given = {"teacher": str(tagger), "student": str(letters), "max_length": 30, **QUICK}
    report = exitkit.distill(output=tmp_path / "s", **given)
    told = report["learned_from"]
    assert told["words_lost"] > 0
    assert f"{told['words_lost']} of the {told['words'] + told['words_lost']} words to learn from" in caplog.text
    for method in ("layers", "minilm"):
        with pytest.raises(UsageError, match="different tokens"):
            exitkit.distill(output=tmp_path / method, method=method, **given)


def test_several_taggers_teach_one_student(tagger: Path, turned: Path, tmp_path: Path) -> None:
    report = exitkit.distill(teacher=[str(tagger), str(turned)], output=tmp_path / "s", **QUICK)
    assert len(report["teachers"]) == 2
    assert exitkit.load(tmp_path / "s").labels == exitkit.load(tagger).labels, "in the first one's order"
    with pytest.raises(UsageError, match="cannot be averaged"):
        exitkit.distill(teacher=[str(tagger), str(turned)], output=tmp_path / "t", method="layers", **QUICK)


def test_a_layer_map_is_searched_by_the_score_of_spans(tagger: Path, tmp_path: Path) -> None:
    report = exitkit.distill(
        teacher=str(tagger), output=tmp_path / "s", method="layers", layer_map="search", student_width=16,
        search_rows=48, search_generations=1, search_population=2, **QUICK,
    )  # fmt: skip
    told = report["layer_map_search"]
    assert report["options"]["layer_map"] == ",".join(map(str, told["layer_map"]))
    assert [one["generation"] for one in told["tried"]] == [0, 0, 1, 1]


def test_a_student_of_words_is_timed_on_words(teacher: Teacher) -> None:
    (batch,) = _timed(read("demo:tags", "train[:9]", task=teacher.task), teacher, 0)
    assert sorted({len(batch[name]) for name in batch}) == [9]
    assert (batch["words"] >= 0).any()


# --- refused


def spoilt(tagger: Path, folder: Path, labels: list[str]) -> Path:
    """A tagger that calls its tags otherwise."""
    shutil.copytree(tagger, folder)
    (folder / "exitkit.yaml").unlink()
    model = AutoModelForTokenClassification.from_pretrained(tagger)
    model.classifier = torch.nn.Linear(32, len(labels))
    model.num_labels = model.config.num_labels = len(labels)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.save_pretrained(folder)
    return folder


Make = Callable[[Path, Path, Path], dict]
"""The settings of a case, from the tagger, a classifier and a folder to make things in."""

PIECES = ["O", *(f"{mark}-{kind}" for kind in ("THING", "BLAME", "PRAISE") for mark in "BIES")]
BAD: dict[str, tuple[Make, str]] = {
    "a classifier for words": (
        lambda t, c, h: {"teacher": str(c)},
        r"is for classification, and the labels of --data look like tagging",
    ),
    "a tagger for texts": (
        lambda t, c, h: {"data": "demo:reviews"},
        r"is for tagging, and the labels of --data look like classification",
    ),
    "other tags": (
        lambda t, c, h: {"teacher": str(spoilt(t, h / "x", ["O", "B-PER", "I-PER"]))},
        r"answers O, B-PER, I-PER; the data has .*B-THING.*--label-names",
    ),
    "tags of another scheme that the teacher knows too": (
        lambda t, c, h: {"teacher": str(spoilt(t, h / "x", PIECES))},
        r"writes tags as IOBES \(O, B-THING.*\), and --data as IOB2 \(.*B-THING.*\). Rewrite",
    ),
    "plain tags": (
        lambda t, c, h: {"teacher": str(spoilt(t, h / "x", ["O", "THING"]))},
        r"writes tags as plain ones \(O, THING\), and --data as IOB2",
    ),
    "teachers of other tags": (
        lambda t, c, h: {"teacher": [str(t), str(spoilt(t, h / "x", ["O", "B-PER"]))]},
        r"has the labels O, B-PER, and .* has B-BLAME",
    ),
    "a tagger and a classifier": (
        lambda t, c, h: {"teacher": [str(t), str(c)]},
        r"is for classification, and .* for tagging",
    ),
    "a search where no layers are compared": (
        lambda t, c, h: {"layer_map": "search"},
        r"--layer-map search: method 'logits' compares no layers",
    ),
    "nothing but empty sentences": (
        lambda t, c, h: {"data": [{"tokens": ["\u200b" * number]} for number in range(1, 21)]},
        r"none of the \d+ words to learn from has a token both in the student and in every teacher",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_message_and_leaves_nothing(name: str, tagger: Path, trained: Path, tmp_path: Path) -> None:
    make, words = BAD[name]
    given = {"teacher": str(tagger), **QUICK, **make(tagger, trained, tmp_path)}
    with pytest.raises(UsageError, match=words):
        exitkit.distill(output=tmp_path / "out", **given)
    assert not list(tmp_path.glob("out*")), "nothing half-written"
