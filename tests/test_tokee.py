"""Recipe `tokee`: words leave while the model learns, as they do at inference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from exitkit_policies.token_window import TokenWindow

import exitkit
from exitkit.engine.loop import full_pass, run
from exitkit.engine.schedule import schedule
from exitkit.engine.stream import pack, resting
from exitkit.errors import UsageError
from exitkit.recipe import EveryExit
from exitkit.tasks import Tagging
from exitkit.testing import tiny_batch, tiny_model
from exitkit.training.recipes import tokee
from exitkit.training.recipes.tokee import SAMPLING, WINDOWS, Tokee, draw

TASK = Tagging(("a", "b", "c"))


def passed(model, rows, recipe: Tokee, phase: str = SAMPLING, progress: float = 0.5):
    return full_pass(
        model,
        rows,
        onward=lambda exit, stream, logits: recipe.onward(phase, model, exit, stream, logits, progress),
    )


@pytest.mark.parametrize(
    ("window", "threshold", "growth"), [(1, 0.6, 1.0), (3, 0.75, 1.0), (15, 0.85, 1.0), (3, 0.5, 1.5)]
)
def test_words_leave_in_training_where_they_leave_at_inference(
    window: int, threshold: float, growth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    fixed = lambda sentences, *_: (  # noqa: E731
        torch.full((sentences,), WINDOWS.index(window)),
        torch.full((sentences,), threshold),
        torch.full((sentences,), growth),
    )
    monkeypatch.setattr(tokee, "draw", fixed)
    with torch.no_grad():
        learning = passed(model, rows, Tokee())
    trace = run(
        model,
        rows,
        schedule(
            "token-window", TokenWindow, {"window": window, "threshold": threshold, "growth": growth}, model.shape
        ),
    )
    assert learning.live is not None
    left_at = learning.live.sum(dim=0)  # the exits that a word was asked at
    assert torch.equal(left_at, trace.exit)
    assert len(set(left_at.tolist())) > 2
    answers = learning.logits.gather(0, (left_at - 1)[None, :, None].expand(1, -1, 3))[0]
    assert torch.allclose(answers, trace.logits, atol=1e-5)


def test_nobody_leaves_in_the_first_phase() -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    found = passed(model, rows, Tokee(), phase="joint")
    assert found.live is not None
    assert found.live.all()


def test_words_at_rest_keep_their_state_and_get_no_gradient_of_their_own_above() -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(rows=1, task="tagging")
    tokens, stream = pack(rows)
    stream = stream.carrying(model.encoder.embed(tokens).detach().requires_grad_())
    live = torch.zeros(stream.units, dtype=torch.bool)
    rested = resting(stream, live)
    after = model.encoder.layer(0, rested)
    words = stream.owner >= 0
    assert torch.equal(after[words], stream.hidden[words])
    assert not torch.allclose(after[~words], stream.hidden[~words]), "context goes on"
    (gradient,) = torch.autograd.grad(after[~words][:, 0].sum(), stream.hidden)  # all of a norm add up to a constant
    assert gradient[words].abs().sum() > 0, "as keys and values they still learn"


def test_the_loss_of_an_exit_counts_the_words_that_are_still_there() -> None:
    logits = torch.tensor([[[2.0, 0, 0], [0, 2.0, 0]], [[0, 1.0, 0], [0, 0, 1.0]]])  # [E, U, C]
    labels = torch.tensor([0, 1])
    live = torch.tensor([[True, True], [False, True]])
    seen = EveryExit(logits, labels, layers=(1, 2), task=TASK, live=live)
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(2), reduction="none").view(2, 2)
    found = Tokee().losses(SAMPLING, seen)
    assert float(found["exit_1"]) == pytest.approx(float(each[0].mean()) / 3)
    assert float(found["exit_2"]) == pytest.approx(float(each[1, 1]) * 2 / 3)
    everyone = Tokee(supervised="all").losses(SAMPLING, seen)
    assert float(everyone["exit_2"]) == pytest.approx(float(each[1].mean()) * 2 / 3)


def test_settings_are_the_same_within_a_step_and_follow_the_sandwich_rule() -> None:
    torch.manual_seed(5)
    windows, thresholds, growths = draw(10_000, 0.25, 0.5)
    assert set(growths.tolist()) == {1.0, 1.5, 2.0}
    again = draw(10_000, 0.25, 0.5)
    assert torch.equal(windows, again[0])
    assert torch.equal(thresholds, again[1])
    assert not torch.equal(thresholds, draw(10_000, 0.26, 0.5)[1])
    torch.manual_seed(6)
    assert not torch.equal(thresholds, draw(10_000, 0.25, 0.5)[1]), "another seed draws otherwise"
    assert float((thresholds < 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    assert float((thresholds == 0.5).float().mean()) == pytest.approx(0.1, abs=0.01)
    real = thresholds[thresholds > 0]
    assert real.min() >= 0.01
    assert real.max() <= 0.5


def test_other_tasks_and_families_without_halting_words_are_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for tagging; use joint"):
        exitkit.train(model=str(encoder), data="demo:reviews", output=tmp_path / "out", recipe="tokee")
    with pytest.raises(UsageError, match=r"recipe\.supervised.*Did you mean 'live'"):
        Tokee(supervised="liv")


def test_it_trains_in_two_phases(encoder: Path, tmp_path: Path) -> None:
    exitkit.train(
        model=str(encoder),
        data="demo:tags",
        output=tmp_path / "out",
        epochs=1,
        max_train_samples=600,
        recipe={"name": "tokee", "learning_rate": 2e-3, "head_learning_rate": 2e-3},
    )
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["recipe"] == "tokee"
    assert metrics["exits"][-1]["score"] > 0.3
