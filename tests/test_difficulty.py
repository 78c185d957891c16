"""Recipe `difficulty`: which rows are hard, and a model that is less sure of them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from test_artifact import Interrupted
from transformers import TrainerCallback

import exitkit
from exitkit.data import demo
from exitkit.data.splits import texts
from exitkit.errors import UsageError
from exitkit.recipe import EveryExit
from exitkit.tasks import Classification
from exitkit.testing import tiny_model
from exitkit.training import judges, trainer
from exitkit.training.recipes.difficulty import Difficulty, margin_loss

QUICK = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 400}
RECIPE = {"name": "difficulty", "learning_rate": 2e-3, "head_learning_rate": 2e-3}


def logits(*sure: float) -> torch.Tensor:
    """Two classes, the first with these probabilities."""
    first = torch.tensor(sure)
    return torch.stack([first, 1 - first], dim=-1).log()


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_margin_is_what_easy_rows_lack_of_it_over_the_hard_one() -> None:
    easy = torch.tensor([True, False, True])
    loss = margin_loss(logits(0.9, 0.6, 0.7), easy, 0.5)  # only one hard row can be drawn
    assert loss.item() == pytest.approx(((0.5 - 0.3) + (0.5 - 0.1)) / 2, abs=1e-6)
    assert margin_loss(logits(0.9, 0.6, 0.7), easy, 0.2).item() == pytest.approx((0 + 0.1) / 2, abs=1e-6)
    assert margin_loss(logits(0.2, 0.6), torch.tensor([True, False]), 0.0).item() == 0, "the larger class counts"


def test_every_easy_row_draws_one_hard_row_and_a_seed_draws_the_same() -> None:
    said = logits(0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9)
    easy = torch.arange(7) < 3
    torch.manual_seed(0)
    found = [margin_loss(said, easy, 1.0).item() for _ in range(30)]
    torch.manual_seed(0)
    assert [margin_loss(said, easy, 1.0).item() for _ in range(30)] == found
    torch.manual_seed(0)
    drawn = torch.tensor([0.6, 0.7, 0.8, 0.9])[torch.randint(4, (3,))]
    assert found[0] == pytest.approx(float((1 - (0.5 - drawn)).mean()), abs=1e-6)
    assert len({round(loss, 4) for loss in found}) > 5


@pytest.mark.parametrize("kind", [True, False])
def test_a_batch_with_rows_of_one_kind_only_has_no_margin(kind: bool) -> None:
    said = logits(0.9, 0.6).requires_grad_()
    loss = margin_loss(said, torch.tensor([kind, kind]), 0.5)
    loss.backward()
    assert loss.item() == 0
    assert not said.grad.any()


def test_the_margin_makes_easy_rows_surer_and_hard_ones_less_sure() -> None:
    said = logits(0.8, 0.7).requires_grad_()
    margin_loss(said, torch.tensor([True, False]), 0.5).backward()
    assert said.grad[0, 0] < 0 < said.grad[1, 0]


def test_the_last_exit_learns_with_the_margin_and_the_others_after_it_without() -> None:
    said = torch.stack([logits(0.6, 0.6), logits(0.9, 0.7)])
    seen = EveryExit(said, torch.tensor([0, 1]), (1, 2), Classification(("a", "b")), solved=torch.tensor([True, False]))
    recipe = Difficulty(weight=0.25)
    losses = recipe.losses("fine-tune", seen)
    assert losses.keys() == {"last", "margin"}
    assert losses["margin"].item() == pytest.approx(0.25 * (0.5 - 0.2), abs=1e-6)
    assert recipe.losses("exits", seen).keys() == {"exit_1"}


# --- judges ----------------------------------------------------------------------------------------------------------


def test_judges_have_not_seen_the_rows_that_they_judge_nor_their_texts(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"a {word} film , {number}" for word in ("good", "dull") for number in range(20)]
    rows += rows[::2]  # the same text twice
    part = {"text": rows, "label": ["negative" if "dull" in row else "positive" for row in rows]}
    others = {split: demo.reviews()[split] for split in ("validation", "test")}
    data = DatasetDict({split: Dataset.from_dict(part) for split, part in {"train": part, **others}.items()})
    learnt, asked, found = [], [], []
    right, ask, judge = judges.run_phases, judges.exit_logits, judges.solved

    def trained(job, phases, folder):
        learnt.append(set(texts(job.rows)))
        return right(job, phases, folder)

    def answered(model, sample, title):
        asked.append(set(texts(sample.rows)))
        return ask(model, sample, title)

    def judged(*args):
        found.append(judge(*args))
        return found[-1]

    monkeypatch.setattr(judges, "run_phases", trained)
    monkeypatch.setattr(judges, "exit_logits", answered)
    monkeypatch.setattr("exitkit.training.train.solved", judged)
    exitkit.train(model=str(encoder), data=data, output=tmp_path / "model", epochs=1, recipe=RECIPE)
    assert len(learnt) == len(asked) == 3
    for seen, fold in zip(learnt, asked, strict=True):
        assert seen, "a judge learns something"
        assert not seen & fold
    assert set.union(*asked) == {(row,) for row in rows}, "every row is judged"
    assert len(found[0][0]) == len(rows)


def test_rows_are_easy_that_their_judge_answers_right(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that says "the first class" whatever it is asked finds the rows of the other class hard."""

    def first_class(model, sample, title):
        return torch.tensor([1.0, 0.0]).expand(1, len(sample.rows), 2)

    found = []
    judge = judges.solved

    def judged(job, *args):
        found.append((job.rows.data["label"][:], judge(job, *args)))
        return found[-1][1]

    monkeypatch.setattr(judges, "exit_logits", first_class)
    monkeypatch.setattr("exitkit.training.train.solved", judged)
    report = exitkit.train(model=str(encoder), output=tmp_path / "model", recipe=RECIPE, **QUICK)
    ((labels, (easy, spent)),) = found
    assert easy.tolist() == [label == 0 for label in labels]
    assert 0 < spent.seconds < report["train_seconds"], "judges' time counts as training"


def test_rows_that_judges_call_hard_end_up_less_sure(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called hard are reviews of two clauses against each other, which are there to be seen."""

    def hard(text: str) -> bool:
        return " but " in text or "although" in text or "matters" in text

    def called(job, *_):
        return np.array([not hard(text) for text in job.rows.data["text"][:]]), judges.Spent()

    monkeypatch.setattr("exitkit.training.train.solved", called)
    rows, gaps = demo.reviews()["test"]["text"], []
    for weight in (0.0, 4.0):
        folder = tmp_path / str(weight)
        given = {**QUICK, "recipe": {**RECIPE, "weight": weight}, "exits": [4], "max_train_samples": 1500}
        exitkit.train(model=str(encoder), output=folder, **given)
        sure = exitkit.load(folder).predict_proba(rows).max(axis=1)
        harder = np.array([hard(text) for text in rows])
        gaps.append(sure[~harder].mean() - sure[harder].mean())
    assert gaps[1] > gaps[0] + 0.1


def test_judges_are_not_trained_again_when_a_run_goes_on(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = {**QUICK, "model": str(encoder), "recipe": {**RECIPE, "folds": 2}, "training": {"save_steps": 2}}
    exitkit.train(output=whole, **given)
    right, phases = trainer.ShowProgress, []

    class PullsThePlug(TrainerCallback):
        def __init__(self) -> None:
            phases.append(self)

        def on_step_end(self, args, state, control, **kwargs):
            if len(phases) == 3 and state.global_step == 5:
                raise Interrupted

    monkeypatch.setattr(trainer, "ShowProgress", lambda advance: PullsThePlug())
    with pytest.raises(Interrupted):
        exitkit.train(output=broken, **given)
    monkeypatch.setattr(trainer, "ShowProgress", right)
    monkeypatch.setattr(logging.getLogger("exitkit"), "propagate", True)
    with caplog.at_level(logging.INFO, "exitkit"):
        exitkit.train(output=broken, resume=True, **given)
    told = {(record.name, record.created, record.getMessage()) for record in caplog.records}  # each once
    assert sum("phase 'fine-tune' is done already" in message for _, _, message in told) == 2
    assert any("phase 'fine-tune' goes on from step" in message for _, _, message in told)
    for file in ("model.safetensors", "exits.safetensors"):
        one, two = load_file(whole / file), load_file(broken / file)
        assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one), file


# --- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{"margin": 1.5}, {"weight": -1.0}, {"folds": 1}])
def test_options_out_of_range_are_refused(option: dict) -> None:
    with pytest.raises(UsageError, match=f"recipe.{next(iter(option))}"):
        Difficulty(**option)


def test_only_one_class_of_several_has_a_probability_to_compare() -> None:
    with pytest.raises(UsageError, match="this model is for multi-label"):
        Difficulty().phases(tiny_model(task="multi-label"), 1.0)


def test_fewer_texts_than_folds_are_refused(encoder: Path, tmp_path: Path) -> None:
    recipe = {**RECIPE, "folds": 500}
    with pytest.raises(UsageError, match="500 folds of 400 different texts"):
        exitkit.train(model=str(encoder), output=tmp_path / "model", recipe=recipe, **QUICK)
