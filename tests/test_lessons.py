"""What teachers say: the same from disk and live, aligned with the student's tokens, averaged, within a budget."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from exitkit.configuration.config import Training
from exitkit.data.batches import batches, encode
from exitkit.data.sources import read
from exitkit.distillation.lessons import Layout, Lessons
from exitkit.distillation.store import Store, kept_rows, shares
from exitkit.distillation.teacher import load_teachers
from exitkit.distiller import Lesson, Reads
from exitkit.engine.internals import Internals
from exitkit.engine.loop import full_pass
from exitkit.errors import ExitkitError, UsageError
from exitkit.plugins import installed
from exitkit.recipe import Passed
from exitkit.training.phases import Job, all_rows
from exitkit.training.recipes.joint import Joint
from exitkit.training.trainer import _also

CPU = torch.device("cpu")
READS = {
    "inside": Reads(answers=False, hidden=((0, 0), (1, 2), (2, 4)), scores=((1, 2), (2, 4)), vectors=((2, 4),)),
    "answers": Reads(),
}


@pytest.fixture(scope="module")
def teacher(trained: Path):
    return load_teachers([str(trained)], installed(), CPU, None)[0]


def lessons(teachers, folder: Path, budget: int, reads: dict[str, Reads] = READS) -> Lessons:
    rows = read("demo:reviews", "train[:40]")
    encoded = [
        encode(rows, one.tokenizer, one.max_length).remove_columns("labels").with_format("python") for one in teachers
    ]
    return Lessons(teachers, encoded, teachers[0].model.encoder, reads, folder, budget, CPU)


def taught(tutor: Lessons, phase: str, rows: list[int]) -> tuple[Lesson, torch.Tensor]:
    """The lesson of some rows to a student that is the teacher, and the last exit's answers."""
    teacher = tutor.teachers[0]
    (batch,) = batches(tutor.encoded[0].select(rows), teacher.tokenizer, len(rows))
    notes = tutor.notes(phase)
    with torch.no_grad():
        answers = full_pass(teacher.model, batch, notes.embedded, notes.between).logits[-1]
    tutor.prepare(phase)
    return tutor.lesson(phase, torch.tensor(rows), batch, notes), answers


ROWS = [7, 3, 39, 12, 0, 25]
WHOLE, NOTHING = 10**9, 0


@pytest.mark.parametrize("budget", [WHOLE, NOTHING, 60_000])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(budget: int, teacher, tmp_path: Path) -> None:
    same = {"inside": Reads(False, ((0, 0), (3, 3), (4, 4)), ((1, 1), (4, 4)), ((4, 4), (2, 2)))}
    tutor = lessons([teacher], tmp_path, budget, same)
    lesson, _ = taught(tutor, "inside", ROWS)
    assert len(lesson.hidden) == 3
    assert len(lesson.scores) == 2
    for own, theirs in (*lesson.hidden, *lesson.scores, *lesson.vectors):
        assert own.shape == theirs.shape
        assert torch.allclose(own, theirs, atol=1e-5)
    tokens = sum(tutor.lengths[row] for row in ROWS)
    assert lesson.hidden[0][1].shape == (tokens, 32)
    assert lesson.scores[0][1].shape == (sum(tutor.lengths[row] ** 2 for row in ROWS), 2)
    assert lesson.vectors[0][1].shape == (tokens, 3, 32)
    assert list(lesson.lengths) == sorted(tutor.lengths[row] for row in ROWS)


def test_with_and_without_cache_the_lesson_is_the_same_to_rounding(teacher, tmp_path: Path) -> None:
    budgets = {"whole": WHOLE, "part": 60_000, "none": NOTHING}
    tutors = {name: lessons([teacher], tmp_path / name, budget) for name, budget in budgets.items()}
    for phase in READS:
        given = {name: tutor.records(phase, ROWS) for name, tutor in tutors.items() if tutor.prepare(phase) is None}
        for name in ("part", "none"):
            for one, other in zip(given["whole"], given[name], strict=True):
                assert torch.allclose(one, other, atol=1e-6, rtol=1e-5)
    kept = {name: tutor.told("inside")["rows"] for name, tutor in tutors.items()}
    assert kept["whole"] == 40
    assert 0 < kept["part"] < 40
    assert kept["none"] == 0
    assert tutors["part"].told("answers")["rows"] == 40, "small outputs come first"
    for name, budget in budgets.items():
        assert sum(file.stat().st_size for file in (tmp_path / name).glob("*")) <= budget


def test_answers_are_in_the_batchs_order(teacher, tmp_path: Path) -> None:
    lesson, answers = taught(lessons([teacher], tmp_path, WHOLE), "answers", ROWS)
    assert lesson.logits is not None
    assert torch.allclose(lesson.logits, answers, atol=1e-5)


def test_what_is_kept_is_found_by_content(teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lessons([teacher], tmp_path, WHOLE)
    first.prepare("answers")
    kept = first.records("answers", ROWS)
    again = lessons([teacher], tmp_path, WHOLE)
    monkeypatch.setattr(again, "_ask", lambda *args: pytest.fail("it was asked again"))
    again.prepare("answers")
    assert all(torch.equal(a, b) for a, b in zip(kept, again.records("answers", ROWS), strict=True))
    bias = teacher.model.stock.classifier.bias.data
    before = bias.clone()
    bias += 1
    try:
        other = lessons([teacher], tmp_path, WHOLE)
        other.prepare("answers")
        assert all(torch.allclose(a + 1, b) for a, b in zip(kept, other.records("answers", ROWS), strict=True))
    finally:
        bias.copy_(before)


def test_several_teachers_are_averaged_in_the_first_ones_order(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    with torch.no_grad():
        model.classifier.weight.mul_(-2)
    model.config.id2label = {0: "positive", 1: "negative"}
    model.config.label2id = {"positive": 0, "negative": 1}
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(trained).save_pretrained(other)
    pair = load_teachers([str(trained), str(other)], installed(), CPU, None)
    assert pair[0].task.labels == ("negative", "positive")
    alone = [
        lessons([one], tmp_path / name, NOTHING).records("answers", ROWS) for one, name in zip(pair, "ab", strict=True)
    ]
    both = lessons(pair, tmp_path / "both", NOTHING).records("answers", ROWS)
    for one, two, mean in zip(*alone, both, strict=True):
        assert torch.allclose((one + two) / 2, mean, atol=1e-5)
    (batch,) = batches(lessons(pair, tmp_path, 0).encoded[1].select([7]), pair[1].tokenizer, 1)
    with torch.no_grad():
        plain = model.eval()(**batch).logits[0]
    assert torch.allclose(alone[1][0], plain.flip(0), atol=1e-5)


def test_unlabelled_rows_come_after_labelled_ones_and_say_so(teacher) -> None:
    some, bare = read("demo:reviews", "train[:3]"), read("demo:reviews", "test[:2]", use_labels="ignored")
    job = Job(teacher.model, teacher.tokenizer, Joint(), some, some.task, 40, None, Training(), CPU, bare)
    rows = all_rows(job)
    assert rows["row"][:] == [0, 1, 2, 3, 4]
    assert rows["labelled"][:] == [1, 1, 1, 0, 0]
    assert rows["labels"][:3] == some.data["label"][:]
    assert "labelled" not in all_rows(replace(job, unlabelled=None)).column_names
    assert "labels" not in all_rows(replace(job, rows=bare, unlabelled=bare)).column_names


def test_a_record_is_one_vector_of_its_parts() -> None:
    layout = Layout(classes=3, width=4, heads=2, hidden=(0, 5), scores=(5,), vectors=(5,))
    assert layout.parts(6, 1) == [3, 24, 24, 72, 72]
    assert layout.size(6, 1) == 195
    assert layout.parts(6, 4) == [12, 24, 24, 72, 72], "in tagging there are logits of every word"


# --- on disk


def test_short_rows_are_kept_first_and_the_budget_holds() -> None:
    order, ends = kept_rows([5, 2, 9, 2], 4 * 9)
    assert order == [1, 3, 0]
    assert ends == [2, 4, 9]
    assert kept_rows([5, 2, 9, 2], 4 * 9 - 1)[0] == [1, 3]
    assert shares([100, 10, 1000], 500) == [100, 10, 390]


def test_the_file_is_raw_fp32_and_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.f32", [3, 1, 2], 10**6)

    def ask(rows: list[int]) -> list[torch.Tensor]:
        assert not (tmp_path / "x.f32").exists()
        return [torch.full(([3, 1, 2][row],), float(row)) for row in rows]

    store.fill(ask)
    assert np.fromfile(tmp_path / "x.f32", dtype="<f4").tolist() == [1, 2, 2, 0, 0, 0]
    assert store.read(2).tolist() == [2, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["x.f32"]

    def fails(rows: list[int]) -> list[torch.Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path / "y.f32", [3], 10**6).fill(fails)
    assert [file.name for file in tmp_path.iterdir()] == ["x.f32"], "nothing half-written stays"


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import io

    class Full(io.BytesIO):
        def write(self, data) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda *args, **kwargs: Full())
    with pytest.raises(ExitkitError, match=r"the disk is full.*--cache-size.*--cache"):
        Store(tmp_path / "x.f32", [3], 10**6).fill(lambda rows: [torch.zeros(3)])


# --- who can teach


def test_a_plain_checkpoint_teaches_as_the_artifact_does(trained: Path, tmp_path: Path, teacher) -> None:
    plain = tmp_path / "plain"
    AutoModelForSequenceClassification.from_pretrained(trained).save_pretrained(plain)
    AutoTokenizer.from_pretrained(trained).save_pretrained(plain)
    (other,) = load_teachers([str(plain)], installed(), CPU, None)
    assert other.task == teacher.task
    asked = [lessons([one], tmp_path, NOTHING).records("answers", [1, 2]) for one in (teacher, other)]
    assert all(torch.equal(a, b) for a, b in zip(*asked, strict=True))


def test_teachers_of_other_labels_or_without_a_head_are_refused(trained: Path, encoder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    (other / "exitkit.yaml").unlink()
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    model.config.id2label = {0: "spam", 1: "ham"}
    model.save_pretrained(other)
    for sources, words in (
        ([str(trained), str(other)], "has the labels spam, ham, and .* has negative, positive"),
        ([str(trained), str(trained)], "named twice"),
        ([str(encoder)], "no fine-tuned classifier"),
        ([str(tmp_path / "nowhere")], "--teacher .*no such folder"),
    ):
        with pytest.raises(UsageError, match=words):
            load_teachers(sources, installed(), CPU, None)


def test_a_phase_that_does_not_ask_the_teacher_learns_without_it(teacher, tmp_path: Path) -> None:
    tutor = lessons([teacher], tmp_path, WHOLE, {"alone": Reads(answers=False)})
    lesson, _ = taught(tutor, "alone", ROWS)
    assert lesson == Lesson(None)
    assert not list(tmp_path.iterdir())


def test_notes_are_taken_beside_a_method_that_says_more_of_a_layer(teacher) -> None:
    batch = next(iter(batches(encode(read("demo:reviews", "train[:4]"), teacher.tokenizer, 32), teacher.tokenizer, 4)))
    batch.pop("labels")
    notes = Internals(teacher.model.encoder, [2], [])
    embedded, between = _also(None, lambda index, before, after: Passed(after, note=index), notes)
    found = full_pass(teacher.model, batch, embedded, between)
    assert found.notes == (0, 1, 2, 3)
    assert len(notes.states(2)) == int(batch["attention_mask"].sum())
