"""Finds what is installed: every entry point of group `exitkit`, loaded, checked and kept apart when it is broken."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from exitkit import containment, hookspecs
from exitkit.distiller import Distiller
from exitkit.engine.encoders.base import Encoder
from exitkit.errors import PluginError, UsageError, one_of
from exitkit.policy import ExitPolicy, Knob, knobs
from exitkit.process import interrupts
from exitkit.process.switches import put_back
from exitkit.recipe import Recipe

POLICY_API = 1
KINDS: dict[str, tuple[str, type]] = {
    "register_policies": ("policy", ExitPolicy),
    "register_recipes": ("recipe", Recipe),
    "register_distillers": ("method", Distiller),
    "register_encoders": ("model type", Encoder),
}


NAME = re.compile(r"[^\W_][\w.-]*")
"""What names of policies, recipes, methods and model types look like: they stand in commands, files and paths."""

ONLY = "EXITKIT_LOAD_PLUGINS"
"""Environment variable: what is loaded besides exitkit's own, by names of entry points or distributions, comma by
comma. Unset: everything that is installed. It serves to find out which plugin spoils an environment."""


@dataclass
class Plugin:
    """One entry point: where it came from, what it offers, or why it is out of order."""

    name: str
    module: str
    distribution: str
    version: str
    error: str | None = None
    offers: dict[str, list[str]] = field(default_factory=dict)  # by kind
    notes: list[str] = field(default_factory=list)  # what its users had better know, as sentences

    def __str__(self) -> str:
        return f"'{self.name}' of {self.distribution} {self.version}"


@dataclass(frozen=True)
class Offer:
    """A thing and the plugin that brought it."""

    thing: Any
    plugin: Plugin


class Registry:
    """Everything that plugins registered, by kind and name. Trouble is raised when somebody asks for what it hit."""

    def __init__(self, plugins: Iterable[Plugin] = ()) -> None:
        self.plugins = list(plugins)
        self.notes: list[str] = []
        """What was installed and not looked at, or looked for and not installed, as sentences."""
        self._offers: dict[str, dict[str, list[Offer]]] = {kind: {} for kind, _ in KINDS.values()}

    def add(self, kind: str, name: str, thing: Any, plugin: Plugin) -> None:
        """Take in a thing; a second one under the same name makes the name ambiguous, not the first one wrong."""
        self._offers[kind].setdefault(name, []).append(Offer(thing, plugin))
        containment.remember(kind, name, thing, f"{plugin.distribution} {plugin.version}")
        plugin.offers.setdefault(kind, []).append(name)

    def names(self, kind: str) -> list[str]:
        """Names that can be asked for."""
        return sorted(name for name, offers in self._offers[kind].items() if len(offers) == 1)

    def clashes(self) -> list[str]:
        """Names that more than one plugin claims, as sentences."""
        return [
            f"{kind} '{name}' is claimed by {_and(str(offer.plugin) for offer in offers)}"
            for kind, names in self._offers.items()
            for name, offers in sorted(names.items())
            if len(offers) > 1
        ]

    def offer(self, kind: str, name: str) -> Offer:
        """What is registered under a name.

        Raises:
            UsageError: nothing is; the message names the closest match and the plugins that failed to load.
            PluginError: several plugins claim the name; the message names them.
        """
        offers = self._offers[kind].get(name, [])
        if len(offers) > 1:
            raise PluginError(
                f"{kind} '{name}' is claimed by {_and(str(offer.plugin) for offer in offers)}; uninstall one of them."
            )
        if not offers:
            broken = [f"{plugin}: {plugin.error}" for plugin in self.plugins if plugin.error]
            note = f" Plugins that failed to load: {'; '.join(broken)}." if broken else ""
            raise UsageError(" ".join([one_of(kind, name, self.names(kind)) + note, *self.notes]))
        return offers[0]

    def policy(self, name: str) -> type[ExitPolicy]:
        """The policy of this name; see `offer`."""
        policy: type[ExitPolicy] = self.offer("policy", name).thing
        return policy

    def recipe(self, name: str) -> type[Recipe]:
        """The recipe of this name; see `offer`."""
        recipe: type[Recipe] = self.offer("recipe", name).thing
        return recipe

    def distiller(self, name: str) -> type[Distiller]:
        """The distillation method of this name; see `offer`."""
        method: type[Distiller] = self.offer("method", name).thing
        return method

    def encoder(self, model_type: str) -> type[Encoder]:
        """The encoder class for a transformers `model_type`; see `offer`."""
        encoder: type[Encoder] = self.offer("model type", model_type).thing
        return encoder


def installed() -> Registry:
    """What the entry points of this environment register. Loads every plugin; none of them can stop the others.

    The environment variable EXITKIT_LOAD_PLUGINS may leave some out.
    """
    found = sorted(entry_points(group=hookspecs.PROJECT), key=lambda point: (_distribution(point), point.name))
    wanted = os.environ.get(ONLY)
    chosen, notes = (found, []) if wanted is None else _among(found, wanted)
    registry = collect((_plugin(point), point.load) for point in chosen)
    registry.notes = notes
    return registry


def _among(found: list[EntryPoint], wanted: str) -> tuple[list[EntryPoint], list[str]]:
    """Those of exitkit's own and those wanted, and what to say of the others."""
    names = [name for part in wanted.split(",") if (name := part.strip())]

    def meant(name: str, point: EntryPoint) -> bool:
        return name == point.name or _normal(name) == _normal(_distribution(point))

    def loaded(point: EntryPoint) -> bool:
        return _distribution(point) == hookspecs.PROJECT or any(meant(name, point) for name in names)

    left = [str(_plugin(point)) for point in found if not loaded(point)]
    notes = [f"{ONLY} leaves out {_and(left)}."] if left else []
    notes += [
        f"{ONLY} names '{name}', which is neither an installed plugin nor a distribution of one."
        for name in names
        if not any(meant(name, point) for point in found)
    ]
    return [point for point in found if loaded(point)], notes


def collect(sources: Iterable[tuple[Plugin, Callable[[], Any]]]) -> Registry:
    """Load plugins and build a registry of what they offer.

    Args:
        sources: each plugin's description and a function that gives its module.
    """
    registry = Registry()
    with interrupts.heard():
        for plugin, load in sources:
            registry.plugins.append(plugin)
            for kind, name, thing in _registrations(plugin, load):
                registry.add(kind, name, thing, plugin)
    return registry


def _registrations(plugin: Plugin, load: Callable[[], Any]) -> list[tuple[str, str, Any]]:
    """What a plugin registers, checked: (kind, name, thing). Nothing, with the reason in it, when it is broken."""
    try:
        with put_back() as changed:
            staged = _registered(plugin, load())
    except BaseException as error:  # a plugin that ends the program is broken like any other
        if isinstance(error, KeyboardInterrupt) and interrupts.by_user():
            raise
        plugin.error = _reason(error)
        return []
    plugin.notes += [f"sets {what} for the whole program when it is loaded; that was undone" for what in changed]
    plugin.notes += [
        f"policy '{name}' has no knob: it runs as it is, and calibrate has nothing to choose"
        for _, name, thing in staged
        if issubclass(thing, ExitPolicy) and not knobs(thing)
    ]
    return staged


def _registered(plugin: Plugin, module: Any) -> list[tuple[str, str, Any]]:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=plugin.name)
    manager.check_pending()
    staged: list[tuple[str, str, Any]] = []
    for hook, (kind, base) in KINDS.items():

        def register(name: str, thing: Any, kind: str = kind, base: type = base) -> None:
            _check(kind, name, thing, base)
            staged.append((kind, name, thing))

        getattr(manager.hook, hook)(register=register)
    if not staged:
        raise PluginError("registers nothing: no function of it is marked with exitkit.hookimpl")
    return staged


def _check(kind: str, name: str, thing: Any, base: type) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(
            f"{kind} name {name!r} is no plain name: letters, digits, '-', '_' and '.', a letter or digit first"
        )
    if not (inspect.isclass(thing) and issubclass(thing, base)):
        raise PluginError(f"{kind} '{name}' must be a class derived from {base.__module__}.{base.__qualname__}")
    if inspect.isabstract(thing):
        missing = ", ".join(sorted(getattr(thing, "__abstractmethods__", ())))
        raise PluginError(f"{kind} '{name}' does not define {missing}")
    if issubclass(thing, ExitPolicy):
        _check_policy(name, thing)
    if issubclass(thing, Recipe):
        if getattr(thing, "__dataclass_params__", None) is None:
            raise PluginError(f"{kind} '{name}' must be a frozen dataclass")
        _check_fields(kind, name, thing)


def _check_policy(name: str, policy: type[ExitPolicy]) -> None:
    if policy.api != POLICY_API:
        raise PluginError(
            f"policy '{name}' is written for policy api {policy.api!r}; this exitkit offers {POLICY_API!r}"
        )
    parameters = getattr(policy, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise PluginError(f"policy '{name}' must be a frozen dataclass")
    _check_fields("policy", name, policy)
    for one in knobs(policy):
        wrong = _odd(one)
        if wrong is not None:
            raise PluginError(f"policy '{name}': knob '{one.name}' {wrong}")


def _check_fields(kind: str, name: str, thing: Any) -> None:
    """Raise PluginError for a setting that several objects would share and could change."""
    for one in dataclasses.fields(thing):
        if one.default_factory is not dataclasses.MISSING:
            value = one.default_factory()
            if getattr(type(value), "__hash__", None) is None:
                raise PluginError(
                    f"{kind} '{name}': setting '{one.name}' is a {type(value).__name__}, which can be changed in "
                    "place; use a tuple or another value that cannot"
                )


def _odd(knob: Knob) -> str | None:
    """What is wrong with how a knob is declared; bounds that depend on the model are not looked at."""
    if knob.choices is not None:
        return None if knob.default in knob.choices else f"is {knob.default!r}, none of its choices {knob.choices}"
    if knob.kind not in (int, float):
        return f"is {knob.default!r}, which is no number; name its choices"
    low, high, off = (None if callable(bound) else bound for bound in (knob.low, knob.high, knob.off))
    if low is not None and high is not None and low > high:
        return f"goes from {low:g} to {high:g}, which is nothing"
    below, above = low is not None and not knob.default >= low, high is not None and not knob.default <= high
    if (below or above) and knob.default != off:
        return f"is {knob.default!r}, {'below' if below else 'above'} its own {'low' if below else 'high'} end"
    return None


def _plugin(point: EntryPoint) -> Plugin:
    return Plugin(
        name=point.name,
        module=point.value,
        distribution=_distribution(point),
        version=point.dist.version if point.dist else "?",
    )


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "?"


def _normal(distribution: str) -> str:
    """A distribution's name as installers compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _reason(error: BaseException) -> str:
    """One line, without pluggy's own prefix."""
    return " ".join(str(error).split()) if isinstance(error, PluginError) else containment.described(error)


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
