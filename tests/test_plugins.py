"""Plugins that are out of order are shown with the reason and stop nobody else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from helpers import cli
from typer.testing import CliRunner

from exitkit import hookimpl
from exitkit.cli import app
from exitkit.engine.schedule import schedule
from exitkit.errors import PluginError, UsageError
from exitkit.plugins import Plugin, collect, installed
from exitkit.policy import ExitPolicy, Shape, knob
from exitkit.recipe import Recipe


@dataclass(frozen=True)
class Good(ExitPolicy):
    def decide(self, seen, state):
        return seen.live, state


@dataclass
class NotFrozen(ExitPolicy):
    def decide(self, seen, state):
        return seen.live, state


class Abstract(ExitPolicy):
    pass


@dataclass(frozen=True)
class OfAnotherAge(Good):
    api = 2


@dataclass(frozen=True)
class OfAWrittenAge(Good):
    api = "1"


@dataclass(frozen=True)
class Shared(Good):
    words: list = field(default_factory=list)


@dataclass(frozen=True)
class SharedBySmallPrint(Recipe):
    words: dict = field(default_factory=dict)

    def phases(self, model, epochs):
        return []

    def losses(self, phase, seen):
        return {}


@dataclass(frozen=True)
class AboveItself(Good):
    threshold: float = knob(2.0, low=0.0, high=1.0, off=3.0)


@dataclass(frozen=True)
class NoneOfItsOwn(Good):
    pool: str = knob("max", choices=("mean", "min"))


@dataclass(frozen=True)
class OffByDefault(Good):
    threshold: float = knob(2.0, low=0.0, high=1.0, off=2.0)
    steps: int = knob(9, low=1, high=lambda shape: shape.exits - 1)


def offering(thing: object, name: str = "rule") -> SimpleNamespace:
    @hookimpl
    def register_policies(register):
        register(name, thing)

    return SimpleNamespace(register_policies=register_policies)


def recipe(thing: object) -> SimpleNamespace:
    @hookimpl
    def register_recipes(register):
        register("rule", thing)

    return SimpleNamespace(register_recipes=register_recipes)


def raising(error: BaseException) -> Callable[[], object]:
    def load() -> object:
        raise error

    return load


def registering(error: BaseException) -> Callable[[], object]:
    @hookimpl
    def register_policies(register):
        raise error

    return lambda: SimpleNamespace(register_policies=register_policies)


def misspelt() -> SimpleNamespace:
    @hookimpl
    def register_policy(register):
        register("rule", Good)

    return SimpleNamespace(register_policy=register_policy)


def wrong_argument() -> SimpleNamespace:
    @hookimpl
    def register_policies(registry):
        registry("rule", Good)

    return SimpleNamespace(register_policies=register_policies)


def fails() -> object:
    raise ImportError("no module named torchvision")


BROKEN = {
    "does not import": (fails, "ImportError: no module named torchvision"),
    "misspells a hook": (misspelt, "unknown hook 'register_policy'"),
    "misnames an argument": (wrong_argument, "registry"),
    "registers nothing": (SimpleNamespace, "registers nothing"),
    "registers no class": (lambda: offering(Good()), "must be a class derived from"),
    "registers another class": (lambda: offering(dict), "must be a class derived from"),
    "forgets decide": (lambda: offering(Abstract), "does not define decide"),
    "is for another api": (lambda: offering(OfAnotherAge), "policy api 2"),
    "is not frozen": (lambda: offering(NotFrozen), "must be a frozen dataclass"),
    "writes its api as text": (lambda: offering(OfAWrittenAge), "policy api '1'; this exitkit offers 1"),
    "shares a list": (lambda: offering(Shared), "setting 'words' is a list, which can be changed in place"),
    "shares a dict": (lambda: recipe(SharedBySmallPrint), "recipe 'rule': setting 'words' is a dict"),
    "has a default out of range": (lambda: offering(AboveItself), "knob 'threshold' is 2.0, above its own high end"),
    "has a default that is no choice": (lambda: offering(NoneOfItsOwn), "knob 'pool' is 'max', none of its choices"),
    **{
        f"is called {name!r}": (lambda name=name: offering(Good, name), "letters, digits, '-', '_' and '.'")
        for name in (" rule", "a/b", "../../x", "a\nb", "Upper Case!", "", ".", "-x", "a\x00", 3)
    },
    **{
        f"raises {type(error).__name__} {when}": (load(error), f"{type(error).__name__}")
        for error in (
            SystemExit("bye"),
            KeyboardInterrupt(),
            GeneratorExit(),
            BaseException("x"),
            StopIteration(),
            MemoryError(),
        )
        for when, load in (("when it is imported", raising), ("when it registers", registering))
    },
}


def plugin(name: str) -> Plugin:
    return Plugin(name=name, module=name, distribution=f"{name}-package", version="1.0")


@pytest.mark.parametrize("what", BROKEN)
def test_a_plugin_is_shown_with_the_reason_and_others_work_when_it(what: str) -> None:
    load, reason = BROKEN[what]
    registry = collect([(plugin("bad"), load), (plugin("good"), lambda: offering(Good, "fine"))])
    bad, good = registry.plugins
    assert reason in bad.error
    assert "\n" not in bad.error
    assert good.error is None
    assert registry.policy("fine") is Good
    with pytest.raises(UsageError, match=r"Plugins that failed to load: 'bad' of bad-package 1\.0"):
        registry.policy("rule")


def test_a_name_claimed_twice_is_an_error_that_names_both_and_only_for_that_name() -> None:
    claims = [(plugin(name), lambda: offering(Good)) for name in ("one", "two")]
    registry = collect([*claims, (plugin("good"), lambda: offering(Good, "fine"))])
    with pytest.raises(PluginError, match=r"'one' of one-package 1.0 and 'two' of two-package 1.0"):
        registry.policy("rule")
    assert registry.policy("fine") is Good
    assert registry.names("policy") == ["fine"]
    assert len(registry.clashes()) == 1


def test_an_unknown_name_comes_with_the_closest_match() -> None:
    registry = collect([(plugin("good"), lambda: offering(Good, "entropy"))])
    with pytest.raises(UsageError, match="Did you mean 'entropy'"):
        registry.policy("entrophy")


@pytest.mark.parametrize("name", ["rule", "token-window", "v2.1", "a_b", "Größe", "2x"])
def test_plain_names_register(name: str) -> None:
    assert collect([(plugin("good"), lambda: offering(Good, name))]).names("policy") == [name]


def test_a_default_may_be_off_or_beyond_what_some_model_allows() -> None:
    assert collect([(plugin("good"), lambda: offering(OffByDefault))]).plugins[0].error is None


def test_what_a_plugin_sets_for_the_whole_program_is_undone_and_told() -> None:
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state())

    def load() -> object:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(before[1] + 1)
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")
        torch.manual_seed(random.randrange(2**31))
        return offering(Good)

    (found,) = collect([(plugin("bad"), load)]).plugins
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[:2]
    assert torch.is_grad_enabled()
    assert torch.zeros(1).device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), before[2])
    for what in ("default dtype", "number of threads", "gradients", "default device"):
        assert any(what in note for note in found.notes), what


def test_a_policy_without_a_knob_is_told_that_it_cannot_be_calibrated() -> None:
    (found,) = collect([(plugin("good"), lambda: offering(Good))]).plugins
    assert found.notes == ["policy 'rule' has no knob: it runs as it is, and calibrate has nothing to choose"]


def fails_in(method: str, error: BaseException) -> type[ExitPolicy]:
    def wrong(*_: object) -> object:
        raise error

    body = {method: classmethod(wrong) if method == "refuses" else wrong}
    return dataclass(frozen=True)(type("Fails", (Good,), body))


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), ZeroDivisionError("no")])
@pytest.mark.parametrize("method", ["refuses", "__post_init__"])
def test_a_policy_that_fails_before_it_runs_is_named_with_its_distribution(method: str, error: BaseException) -> None:
    shape = Shape(exits=3, layers=3, labels=2, width=8, task="classification")
    registry = collect([(plugin("odd"), lambda: offering(fails_in(method, error), f"odd-{method}"))])
    said = rf"policy 'odd-{method}' of odd-package 1.0 breaks its contract: {method} failed: {type(error).__name__}"
    with pytest.raises(PluginError, match=said):
        schedule(f"odd-{method}", registry.policy(f"odd-{method}"), {}, shape)


def named(name: str, distribution: str) -> SimpleNamespace:
    """An entry point that offers policy `name`."""
    point = SimpleNamespace(name=name, value=f"{name}_module", dist=SimpleNamespace(name=distribution, version="1.0"))
    point.load = lambda: offering(Good, name)
    return point


@pytest.mark.parametrize(
    ("wanted", "loaded", "notes"),
    [
        (None, ["fixed", "one", "two", "three"], []),
        ("", ["fixed"], ["leaves out 'one' of Their_Rules 1.0 and 'two' of Their_Rules 1.0 and 'three' of mine 1.0"]),
        ("two", ["fixed", "two"], ["leaves out 'one' of Their_Rules 1.0 and 'three' of mine 1.0"]),
        (" their-rules , ", ["fixed", "one", "two"], ["leaves out 'three' of mine 1.0"]),
        ("mine,Their_Rules,fixed", ["fixed", "one", "two", "three"], []),
        ("mine,one,two,four", ["fixed", "one", "two", "three"], ["names 'four', which is neither"]),
    ],
)
def test_a_variable_says_which_plugins_are_loaded_besides_exitkits_own(
    wanted: str | None, loaded: list[str], notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = [("one", "Their_Rules"), ("two", "Their_Rules"), ("three", "mine")]
    points = [named(name, distribution) for name, distribution in [("fixed", "exitkit"), *theirs]]
    monkeypatch.setattr("exitkit.plugins.entry_points", lambda group: points)
    monkeypatch.delenv("EXITKIT_LOAD_PLUGINS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("EXITKIT_LOAD_PLUGINS", wanted)
    registry = installed()
    assert registry.names("policy") == sorted(loaded)
    assert len(registry.notes) == len(notes)
    for told, part in zip(registry.notes, notes, strict=True):
        assert part in told


def test_what_was_left_out_is_told_where_it_is_asked_for_and_in_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exitkit.plugins.entry_points", lambda group: [named("one", "theirs")])
    monkeypatch.setenv("EXITKIT_LOAD_PLUGINS", "")
    told = "EXITKIT_LOAD_PLUGINS leaves out 'one' of theirs 1.0."
    with pytest.raises(UsageError, match=told):
        installed().policy("one")
    assert cli("plugins") == {"plugins": [], "clashes": [], "notes": [told]}
    assert told in CliRunner().invoke(app, ["plugins"]).stdout
