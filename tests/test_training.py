"""Losses by hand, and frozen means frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from exitkit.data.batches import encode
from exitkit.data.sources import read
from exitkit.plugins import installed
from exitkit.recipe import EveryExit, Group, Phase, Recipe
from exitkit.tasks import Classification
from exitkit.testing import tiny_model
from exitkit.training.recipes.joint import Joint
from exitkit.training.start import starting_model
from exitkit.training.trainer import arguments, run_phase


def test_joint_weighs_every_exit_by_its_layer() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]])
    labels = torch.tensor([0])
    recipe = Joint()
    total = recipe.combine(
        recipe.losses("joint", EveryExit(logits, labels, layers=(2, 4, 6), task=Classification(("a", "b"))))
    )
    by_hand = (
        2 * torch.tensor(2.0).log()
        + 4 * torch.log1p(torch.tensor(-1.0).exp())
        + 6 * torch.log1p(torch.tensor(2.0).exp())
    ) / 12
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_joint_trains_every_parameter_once() -> None:
    model = tiny_model()
    (phase,) = Joint().phases(model, 1)
    found = [id(parameter) for group in phase.groups for parameter in group.parameters]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())


@dataclass(frozen=True)
class HeadsOnly(Recipe):
    def phases(self, model, epochs):
        return [Phase("heads", epochs, [Group(list(model.heads.parameters()), 1e-2)])]

    def losses(self, phase, seen):
        return {"first": seen.loss(seen.logits[0])}


def test_what_no_group_holds_is_bit_identical_afterwards_and_was_in_evaluation_mode(
    encoder: Path, tmp_path: Path
) -> None:
    rows = read("demo:reviews", "train[:64]")
    start = starting_model(str(encoder), rows.task, None, "mean", installed())
    model, tokenizer = start.model, start.tokenizer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes: list[bool] = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda module, args: modes.append(module.training))
    model.encoder.blocks[0].output.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    recipe = HeadsOnly()
    (phase,) = recipe.phases(model, 1)
    args = arguments(
        tmp_path,
        phase,
        seed=0,
        bf16=False,
        device=torch.device("cpu"),
        extra={"weight_decay": 0.5, "save_strategy": "no"},
    )
    run_phase(
        model, recipe, phase, args, encode(rows, tokenizer, 64), tokenizer, lambda *a, **k: None, None, rows.task, None
    )
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "heads.0.out.weight" in changed
    assert all(name.startswith("heads.") for name in changed)
    assert modes
    assert not any(modes), "a frozen layer trains without dropout"
