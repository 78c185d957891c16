"""Gradient accumulation: micro-batches add up to one batch, and a step that makes NaN ends the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exitkit.data.batches import padded
from exitkit.engine.stream import units_of
from exitkit.errors import ExitkitError
from exitkit.plugins import installed
from exitkit.recipe import Recipe
from exitkit.tasks import Classification, Tagging
from exitkit.testing import tiny_batch, tiny_model
from exitkit.training.recipes import tokee
from exitkit.training.recipes.joint import Joint
from exitkit.training.train import attach_probes
from exitkit.training.trainer import RecipeTrainer, arguments, optimizer

REGISTRY = installed()
LABELS = ("a", "b", "c")
ROWS = 8
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "smartbert": {"gate_weight": 1e-30, "exit_states": "published"},  # its penalty is one of each micro-batch
    "difficulty": {"weight": 0.0},  # likewise the pairs that it draws
}


def rows_of(task: str) -> list[dict[str, Any]]:
    batch = tiny_batch(ROWS, task=task)
    units = units_of(batch).sequence
    labels = torch.randint(3, (len(units),), generator=torch.Generator().manual_seed(1))
    found = []
    for row in range(ROWS):
        tokens = int(batch["attention_mask"][row].sum())
        one: dict[str, Any] = {name: values[row, :tokens].tolist() for name, values in batch.items()}
        own = labels[units == row].tolist()
        found.append({**one, "labels": own if task == "tagging" else own[0], "solved": row % 2 == 0})
    return found


class Padding:
    """All that a collator asks of a tokenizer."""

    pad_token_id, pad_token_type_id = 0, 0


def trainer_of(recipe: Recipe, name: str, kind: str, size: int, folder: Path, phase: int = 0) -> RecipeTrainer:
    model = tiny_model(3, task=kind)
    attach_probes(model, name, REGISTRY, recipe.probes())
    recipe.prepare(model)
    if name != "smartbert":  # whose projectors take fp32
        model.double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    chosen = recipe.phases(model, 1)[phase]
    extra = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": ROWS // size,
        "save_strategy": "no",
        "max_grad_norm": 1e9,
        "max_steps": 1,
    }
    args = arguments(folder, chosen, seed=0, bf16=False, device=torch.device("cpu"), extra=extra)
    task = Tagging(LABELS) if kind == "tagging" else Classification(LABELS)
    return RecipeTrainer(
        model=model,
        args=args,
        train_dataset=rows_of(kind),
        data_collator=lambda rows: padded({key: [row[key] for row in rows] for key in rows[0]}, Padding()),
        optimizers=(optimizer(chosen, model, 0.0), None),
        recipe=recipe,
        phase=chosen,
        task=task,
        weights=None,
        adversary=None,
        tutor=None,
    )


def gradient(recipe: Recipe, name: str, kind: str, size: int, folder: Path, phase: int) -> dict[str, Tensor]:
    """What the first step's gradient is."""
    torch.manual_seed(0)
    trainer = trainer_of(recipe, name, kind, size, folder, phase)
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        named = trainer.model.named_parameters()
        found.update({key: p.grad.clone() for key, p in named if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return found


CASES = [
    (name, kind, phase)
    for name in REGISTRY.names("recipe")
    for kind in ("classification", "tagging")
    if (name == "tokee") <= (kind == "tagging") and not (name in ("smartbert", "difficulty") and kind == "tagging")
    for phase in range(2 if name in ("two-stage", "deebert", "fastbert", "smartbert", "difficulty") else 1)
]


@pytest.mark.parametrize(("name", "kind", "phase"), CASES)
def test_as_many_micro_batches_as_rows_give_the_gradient_of_one_batch(
    name: str, kind: str, phase: int, tmp_path: Path
) -> None:
    recipe = REGISTRY.recipe(name)(**OPTIONS.get(name, {}))
    whole = gradient(recipe, name, kind, ROWS, tmp_path / "whole", phase)
    parts = gradient(recipe, name, kind, 1, tmp_path / "parts", phase)
    assert whole.keys() == parts.keys()
    assert any(value.abs().sum() > 0 for value in whole.values())
    for key, value in whole.items():
        # losses are taken in fp32
        assert torch.allclose(value, parts[key], rtol=1e-4, atol=1e-6), key


def test_tokee_draws_other_settings_for_every_micro_batch_and_the_same_for_all_exits_of_one() -> None:
    torch.manual_seed(3)
    first = [tokee.draw(4, 0.25, 0.5, part)[1] for part in range(8)]
    assert all(not torch.equal(first[0], other) for other in first[1:])
    assert all(torch.equal(one, tokee.draw(4, 0.25, 0.5, part)[1]) for part, one in enumerate(first))


def test_recipes_of_before_that_do_not_know_micro_batches_still_work(tmp_path: Path) -> None:
    asked = []

    class Old(Joint):
        def onward(self, phase, model, exit, stream, logits, progress=0.0):  # type: ignore[no-untyped-def,override]
            asked.append(exit)
            return stream

    trainer_of(Old(), "old", "classification", 4, tmp_path).train()
    assert asked == [1, 2, 3] * 2


class Broken(Joint):
    """One loss is no number from the second step on."""

    def losses(self, phase, seen):  # type: ignore[no-untyped-def]
        found = dict(super().losses(phase, seen))
        return {**found, "exit_2": found["exit_2"] * float("nan")}


def test_a_loss_that_is_no_number_stops_the_training_with_step_and_name(tmp_path: Path) -> None:
    with pytest.raises(ExitkitError, match="diverged in phase 'joint': at step 1, of its losses 'exit_2' is nan"):
        trainer_of(Broken(), "broken", "classification", 4, tmp_path).train()
