"""Mistakes in recipes, families and answers of policies are named as those of whoever made them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import exitkit
from exitkit import hookimpl
from exitkit.artifacts.artifact import read
from exitkit.engine.encoders.base import Encoder
from exitkit.engine.encoders.bert import BertEncoder
from exitkit.engine.encoders.padded import MPNetEncoder
from exitkit.engine.loop import every_exit
from exitkit.engine.model import ExitModel
from exitkit.engine.schedule import schedule
from exitkit.errors import ExitkitError, PluginError
from exitkit.measuring.runs import not_finite
from exitkit.plugins import Plugin, Registry, collect, installed
from exitkit.testing import tiny_batch
from exitkit.training.parity import random_rows, random_stock, small_config
from exitkit.training.recipes.joint import Joint


@pytest.mark.parametrize(
    ("method", "wrong", "message"),
    [
        ("losses", lambda self, phase, seen: {"ce": 1.0}, "losses must give a dict of scalar tensors; 'ce' is float"),
        ("losses", lambda self, phase, seen: seen.logits.no, "losses failed: AttributeError"),
        ("combine", lambda self, losses: 1.0, "combine must give a scalar tensor, not float"),
        ("phases", lambda self, model, epochs: None, "phases must give a list of Phase, not NoneType"),
        ("phases", lambda self, model, epochs: sys.exit(0), "phases failed: SystemExit: 0"),
        ("prepare", lambda self, model: 1 / 0, "prepare failed: ZeroDivisionError"),
        ("onward", lambda self, *args, **more: None, "onward must give a stream, not NoneType"),
        ("__post_init__", lambda self: next(iter(())), "__post_init__ failed: StopIteration"),
    ],
)
def test_a_recipe_that_breaks_its_contract_is_named_with_its_distribution(
    method: str, wrong: object, message: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dataclass(frozen=True)(type("Wrong", (Joint,), {method: wrong}))

    @hookimpl
    def register_recipes(register):
        register("wrong", broken)

    found = [(Plugin("mine", "mine", "my-recipes", "0.3"), lambda: SimpleNamespace(register_recipes=register_recipes))]
    monkeypatch.setattr("exitkit.training.train.installed", lambda: _beside(installed(), collect(found)))
    said = f"recipe 'wrong' of my-recipes 0.3 breaks its contract: {message}"
    with pytest.raises(PluginError, match=said):
        exitkit.train(
            model=str(encoder),
            data="demo:reviews",
            output=tmp_path / "m",
            recipe="wrong",
            max_train_samples=64,
            epochs=1,
        )


def _beside(registry: Registry, more: Registry) -> Registry:
    offer = more.offer("recipe", "wrong")
    registry.add("recipe", "wrong", offer.thing, offer.plugin)
    return registry


@pytest.mark.parametrize(
    ("family", "method", "wrong", "message"),
    [
        (BertEncoder, "embed", lambda self, tokens: tokens.ids, r"embed must give a tensor \[15, 32\], not \[15\]"),
        (BertEncoder, "layer", lambda self, index, stream: None, r"layer must give a tensor \[15, 32\], not NoneType"),
        (BertEncoder, "layer", lambda self, index, stream: sys.exit(0), "layer failed: SystemExit: 0"),
        (BertEncoder, "blocks", property(lambda self: 1 / 0), "blocks failed: ZeroDivisionError"),
        (
            BertEncoder,
            "stock_head",
            lambda self, pooled: pooled,
            r"stock_head must give a tensor \[3, 3\], not \[3, 32\]",
        ),
        (BertEncoder, "pooled", lambda self, stream, units=None: stream.hidden, r"pooled must give a tensor \[3, 32\]"),
        (MPNetEncoder, "padded_layer", lambda self, index, hidden, real: hidden[0], "padded_layer must give a tensor"),
    ],
)
def test_a_family_that_breaks_its_contract_is_named(
    family: type[Encoder], method: str, wrong: object, message: str
) -> None:
    broken = type("Odd", (family,), {method: wrong})
    model = random_stock(small_config("mpnet" if family is MPNetEncoder else "bert"), dtype=torch.float32)
    with pytest.raises(PluginError, match=rf"family '.*Odd' breaks its contract: {message}"):
        every_exit(ExitModel(model, broken, [1], "mean"), random_rows(model, (4, 8, 3)))


def test_what_fails_inside_exitkits_own_family_is_no_plugins_fault() -> None:
    class Named(BertEncoder):
        def embed(self, tokens) -> Tensor:
            return super().embed(tokens)

    model = random_stock(small_config("bert"), dtype=torch.float32)
    rows = random_rows(model, (4, 8))
    assert torch.equal(*(every_exit(ExitModel(model, one, [], "mean").eval(), rows) for one in (Named, BertEncoder)))


def test_answers_that_are_nan_are_the_policys_fault_where_the_exits_own_are_finite(trained: Path) -> None:
    registry = installed()
    model = read(trained, registry)
    plan = schedule("vote", registry.policy("vote"), {}, model.model.shape)
    rows = tiny_batch()
    assert isinstance(not_finite(model, rows, plan), PluginError)
    with torch.no_grad():
        model.model.stock.classifier.bias[0] = torch.nan
    found = not_finite(model, rows, plan)
    assert isinstance(found, ExitkitError)
    assert not isinstance(found, PluginError)
    assert "its weights are damaged" in str(found)
