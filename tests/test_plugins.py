"""Plugins that are out of order are shown with the reason and stop nobody else."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from exitkit import hookimpl
from exitkit.errors import PluginError, UsageError
from exitkit.plugins import Plugin, collect
from exitkit.policy import ExitPolicy


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


def offering(thing: object, name: str = "rule") -> SimpleNamespace:
    @hookimpl
    def register_policies(register):
        register(name, thing)

    return SimpleNamespace(register_policies=register_policies)


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
    "has no proper name": (lambda: offering(Good, " rule"), "not a plain string"),
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


def test_a_plugin_that_ends_the_program_on_import_is_broken_and_stops_nobody() -> None:
    def ends() -> None:
        raise SystemExit("bye")

    registry = collect([(Plugin("ends", "x", "x", "1"), ends), (Plugin("good", "y", "y", "1"), lambda: offering(Good))])
    assert registry.names("policy") == ["rule"]
    assert registry.plugins[0].error == "SystemExit: bye"
