"""The settings of a policy: checked, put in range, and laid out as one policy per exit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from exitkit.engine.limits import NONE, Limits
from exitkit.errors import UsageError, one_of
from exitkit.policy import Bound, ExitPolicy, Knob, Shape, asks_probe, has_gates, knobs, reads_heads

Settings = dict[str, Any]
"""Plain values by field name, as they stand in YAML and JSON; a list holds one value per exit but the last."""


@dataclass(frozen=True)
class Schedule:
    """A policy with its settings, ready to run: the one that decides at each exit."""

    name: str
    settings: Settings  # knobs, and plain settings that are not at their default
    steps: tuple[ExitPolicy, ...]  # [E]
    limits: Limits = NONE
    silent: frozenset[int] = frozenset()  # exits that their settings turn off

    @property
    def first(self) -> ExitPolicy:
        """The policy that starts the state and, where it has gates, works them."""
        return self.steps[0]

    @cached_property
    def asked(self) -> tuple[bool, ...]:
        """[E − 1] where the policy is asked: one without memory need not see exits that nobody may leave at."""
        remembers = type(self.first).start is not ExitPolicy.start
        exits = range(1, len(self.steps))
        return tuple(remembers or (exit >= self.limits.min_exit and exit not in self.silent) for exit in exits)

    @cached_property
    def read(self) -> tuple[bool, ...]:
        """[E − 1] where heads are run for all who are there; elsewhere only for those who leave."""
        return self.asked if reads_heads(self.first) else (False,) * len(self.asked)


def schedule(
    name: str, policy: type[ExitPolicy], settings: Mapping[str, Any], shape: Shape, limits: Limits = NONE
) -> Schedule:
    """Set up a policy for a model.

    Args:
        name: the name it is registered under.
        policy: its class.
        settings: values by field; missing fields take their defaults, `off` stands for a knob's off value.
        shape: the model's.
        limits: rules around the policy.

    Raises:
        UsageError: a setting that the policy does not have, or a value that it may not take.
    """
    check(name, policy, shape)
    limits.check(name, policy, shape)
    declared = {knob.name: knob for knob in knobs(policy, shape.task)}
    elsewhere = {knob.name for knob in knobs(policy)} - declared.keys()
    fields = {field.name: field for field in dataclasses.fields(policy) if field.name not in elsewhere}  # type: ignore[arg-type]
    for given in settings:
        if given in elsewhere:
            raise UsageError(f"policy.{name}.{given} has no meaning for {shape.task}; leave it out.")
        if given not in fields:
            raise UsageError(one_of(f"setting of policy '{name}'", given, fields))
    complete: Settings = {}
    for field in fields.values():
        value = settings[field.name] if field.name in settings else _default(name, field)
        knob = declared.get(field.name)
        complete[field.name] = value if knob is None else checked(name, knob, value, shape)
    varying = {key for key, value in complete.items() if key in declared and isinstance(value, list)}
    steps = []
    for exit in range(shape.exits):
        now = {key: value[min(exit, len(value) - 1)] if key in varying else value for key, value in complete.items()}
        try:
            steps.append(policy(**now))
        except ValueError as error:
            raise UsageError(f"policy '{name}': {error}.") from None
    usual = {key for key, value in complete.items() if key not in declared and value == _usual(fields[key])}
    told = {key: value for key, value in complete.items() if key not in usual}
    return Schedule(name, told, tuple(steps), limits, _silent(declared, steps, shape))


def _silent(declared: Mapping[str, Knob], steps: Sequence[ExitPolicy], shape: Shape) -> frozenset[int]:
    """Exits (from 1) whose own settings, those that may differ from exit to exit, are all off.

    None where the whole policy is off: it is asked all the same, to show what asking costs.
    """
    turned_off = {
        key: {exit for exit, step in enumerate(steps[:-1], start=1) if getattr(step, key) == off_value(knob, shape)}
        for key, knob in declared.items()
        if knob.off is not None
    }
    own = [exits for key, exits in turned_off.items() if declared[key].per_exit]
    if not own or all(len(exits) == shape.exits - 1 for exits in turned_off.values()):
        return frozenset()
    return frozenset(set.intersection(*own))


def check(name: str, policy: type[ExitPolicy], shape: Shape) -> None:
    """Raise UsageError for a policy that cannot work on such a model."""
    if reason := policy.refuses(shape):
        raise UsageError(f"policy '{name}' does not work for {shape.task}: {reason}.")
    if shape.task == "tagging" and not (policy.together or shape.words_halt):
        raise UsageError(
            f"policy '{name}' lets words leave one by one, but layers of this model's family compute sentences as a "
            "whole ('exitkit families' says whose words can halt). Use a policy whose sentences leave as a whole."
        )
    if len(shape.starts) > 1 and (has_gates(policy) or policy.rewrites or asks_probe(policy)):
        what = "asks a probe" if asks_probe(policy) else "changes states"
        raise UsageError(
            f"policy '{name}' does not work on a cascade: it {what}, and the models of a cascade share none, since "
            "each starts from the text. Use a policy that reads answers only, such as cascade."
        )


def rewrites(policy: type[ExitPolicy], task: str) -> bool:
    """Whether a policy's decisions change what later exits of such a task read, so that a replay is only a guess.

    In tagging every policy that lets words leave one by one does: those that stay see the others as they left.
    """
    return policy.rewrites or (task == "tagging" and not policy.together)


def _default(policy: str, field: dataclasses.Field[Any]) -> Any:
    """The default of a field. Raises UsageError: it has none, and nobody gave a value."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise UsageError(f"policy.{policy}.{field.name} has no default; give it with --set policy.{policy}.{field.name}=…")


def _usual(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, or a value that equals nothing."""
    return object() if field.default is dataclasses.MISSING else field.default


def off(name: str, policy: type[ExitPolicy], shape: Shape) -> Schedule:
    """The policy with every knob that has an off value turned off: nobody leaves early, heads and gates still run."""
    settings = {knob.name: off_value(knob, shape) for knob in knobs(policy, shape.task) if knob.off is not None}
    return schedule(name, policy, settings, shape)


def checked(policy: str, knob: Knob, value: Any, shape: Shape) -> Any:
    """The value that a knob takes for what somebody wrote: its type and range checked, `off` resolved."""
    where = f"policy.{policy}.{knob.name}"
    if isinstance(value, list | tuple):
        if not knob.per_exit:
            raise UsageError(f"{where}: got a list, but this setting takes one value for all exits.")
        if len(value) != shape.exits - 1:
            raise UsageError(
                f"{where}: got {len(value)} values; this model has {shape.exits} exits, so a list needs "
                f"{shape.exits - 1}, one for each exit but the last."
            )
        return [checked(policy, knob, one, shape) for one in value]
    if knob.choices is not None:
        if value not in knob.choices:
            raise UsageError(f"{where}: {value!r} is not one of {', '.join(map(str, knob.choices))}.")
        return value
    if (value in ("off", False) and not isinstance(value, int | float)) or value is False:
        if knob.off is None:
            raise UsageError(f"{where}: this setting has no off value.")
        return off_value(knob, shape)
    number = _number(where, knob, value)
    if knob.off is not None and number == off_value(knob, shape):
        return number
    low, high = knob_range(knob, shape)
    if not low <= number <= high:
        raise UsageError(f"{where}: {value} is out of range; allowed are {_span(low, high)}{_or_off(knob)}.")
    return number


def knob_range(knob: Knob, shape: Shape) -> tuple[float, float]:
    """The smallest and largest value of a knob for a model; −inf and inf where it has no bound."""
    low = -math.inf if knob.low is None else _bound(knob.low, shape)
    high = math.inf if knob.high is None else _bound(knob.high, shape)
    return low, high


def off_value(knob: Knob, shape: Shape) -> Any:
    """The value that turns a knob off."""
    assert knob.off is not None
    return knob.kind(_bound(knob.off, shape))


def _bound(bound: Bound, shape: Shape) -> float:
    return bound(shape) if callable(bound) else bound


def _number(where: str, knob: Knob, value: Any) -> Any:
    wanted = "a whole number" if knob.kind is int else "a number"
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UsageError(f"{where}: {value!r} is not {wanted}{_or_off(knob)}.") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UsageError(f"{where}: {value!r} is not {wanted}{_or_off(knob)}.")
    if knob.kind is int and not float(value).is_integer():
        raise UsageError(f"{where}: {value!r} is not {wanted}.")
    return knob.kind(value)


def _span(low: float, high: float) -> str:
    return f"{low:g} to {high:g}"


def _or_off(knob: Knob) -> str:
    return " or 'off'" if knob.off is not None else ""
