"""`check_recipe` and `check_distiller` pass everything that is installed, and catch what authors get wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from exitkit.distillation.methods.logits import Logits
from exitkit.distiller import Reads
from exitkit.errors import PluginError
from exitkit.plugins import installed
from exitkit.recipe import Group
from exitkit.testing import check_distiller, check_recipe
from exitkit.training.recipes.joint import Joint

REGISTRY = installed()


@pytest.mark.parametrize("name", REGISTRY.names("recipe"))
def test_every_installed_recipe_keeps_the_contract(name: str) -> None:
    check_recipe(REGISTRY.recipe(name), name)


@pytest.mark.parametrize("name", REGISTRY.names("method"))
def test_every_installed_method_keeps_the_contract(name: str) -> None:
    check_distiller(REGISTRY.distiller(name), name)


def recipe(**body: object) -> type[Joint]:
    return dataclass(frozen=True)(type("Wrong", (Joint,), body))


def method(**body: object) -> type[Logits]:
    return dataclass(frozen=True)(type("Wrong", (Logits,), body))


def phases(**changed: object):
    return lambda self, model, epochs: [replace(Joint.phases(self, model, epochs)[0], **changed)]


def twice(self, model, epochs):
    return [*Joint.phases(self, model, epochs)] * 2


def one_parameter_twice(self, model, epochs):
    (phase,) = Joint.phases(self, model, epochs)
    return [replace(phase, groups=[*phase.groups, Group(model.parts()["heads"], 1.0)])]


def a_stranger(self, model, epochs):
    return phases(groups=[Group([torch.nn.Parameter(torch.zeros(2))], 1.0)])(self, model, epochs)


def moves_frozen(self, phase, seen):
    with torch.no_grad():
        seen.model.stock.get_input_embeddings().weight.add_(1)
    return Joint.losses(self, phase, seen)


def heads_only(self, model, epochs):
    return phases(groups=[Group(list(model.heads.parameters()), 1.0)])(self, model, epochs)


def overwrites(self, phase, seen):
    found = Joint.losses(self, phase, seen)
    seen.logits.data.zero_()
    return found


drawn: list[int] = []


def forgets_the_seed(self, phase, seen):
    drawn.append(len(drawn))
    return {"loss": (len(drawn) + 1) * seen.loss(seen.logits[-1])}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (recipe(losses=lambda self, phase, seen: {"ce": 1.0}), "losses must give a dict of scalar tensors; 'ce' is"),
        (recipe(losses=lambda self, phase, seen: seen.logits.sum()), "losses must give a dict of scalar tensors"),
        (recipe(losses=lambda self, phase, seen: {}), "losses must give"),
        (recipe(losses=lambda self, phase, seen: {"ce": seen.logits.sum() / 0}), "'ce' is -?inf"),
        (recipe(losses=lambda self, phase, seen: {"ce": torch.tensor(1.0)}), "depends on anything"),
        (recipe(losses=overwrites), "change the logits"),
        (recipe(losses=forgets_the_seed), "something else when it is run again"),
        (recipe(losses=moves_frozen, phases=heads_only), "changes weights that it does not train"),
        (recipe(combine=lambda self, losses: 1.0), "combine must give a scalar tensor"),
        (recipe(phases=lambda self, model, epochs: []), "has no phase"),
        (recipe(phases=twice), "two phases have one name"),
        (recipe(phases=phases(groups=[])), "trains nothing"),
        (recipe(phases=phases(epochs=0)), "0 epochs"),
        (recipe(phases=one_parameter_twice), "a parameter twice"),
        (recipe(phases=a_stranger), "not the model's"),
    ],
)
def test_a_planted_mistake_of_a_recipe_is_found(wrong: type[Joint], message: str) -> None:
    with pytest.raises((AssertionError, PluginError), match=message):
        check_recipe(wrong, "wrong")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (method(losses=lambda self, phase, seen: {"kl": 1.0}), "losses must give a dict of scalar tensors; 'kl' is"),
        (method(losses=lambda self, phase, seen: {"ce": seen.loss(seen.logits[-1])}), "a phase without labels"),
        (
            method(reads=lambda self, phase, student, teacher: Reads(hidden=((9, 1),))),
            "no layer 9|the pass comes first",
        ),
        (method(reads=lambda self, phase, student, teacher: ["answers"]), "reads must give Reads, not list"),
        (method(scaffold=lambda self, student, teacher: None), "scaffold must give a dict of modules, not NoneType"),
        (method(refuses=classmethod(lambda cls, shape: True)), "refuses must give a reason or None"),
    ],
)
def test_a_planted_mistake_of_a_method_is_found(wrong: type[Logits], message: str) -> None:
    with pytest.raises((AssertionError, PluginError), match=message):
        check_distiller(wrong, "wrong")


def test_a_rate_that_teaches_nothing_is_found() -> None:
    with pytest.raises(AssertionError, match=r"phase 'joint' learns at rate -1\.0"):
        check_recipe(Joint, options={"learning_rate": -1.0})


def test_a_recipe_that_is_no_frozen_dataclass_is_found() -> None:
    with pytest.raises(AssertionError, match="must be a frozen dataclass"):
        check_recipe(type("Wrong", (Joint,), {"__dataclass_params__": None}), "wrong")


def test_options_that_are_no_plain_data_are_found() -> None:
    @dataclass(frozen=True)
    class Wrong(Joint):
        layers: tuple[int, ...] = (1, 2)

    with pytest.raises(AssertionError, match="do not survive YAML"):
        check_recipe(Wrong, "wrong")
