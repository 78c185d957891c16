"""What policy.yaml means: what is stored for a policy, which setting is asked for, and the schedule that runs it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from exitkit.artifacts.artifact import Artifact
from exitkit.configuration import runtime
from exitkit.configuration.config import Choice
from exitkit.engine.limits import NONE, Limits
from exitkit.engine.schedule import Schedule, Settings, schedule
from exitkit.errors import UsageError, one_of
from exitkit.plugins import Registry

log = logging.getLogger("exitkit")

WINDOW = (0.98, 1.05)
"""Shares of a target between which a setting counts as near to it."""
REACHED = 0.97
"""The share of a target that counts as reached."""


class Scored(Protocol):
    """A setting with what it gives."""

    @property
    def speedup(self) -> Mapping[str, float]:
        """By currency."""

    @property
    def score(self) -> float:
        """In the metric of its calibration."""


S = TypeVar("S", bound=Scored)


@dataclass(frozen=True)
class Point:
    """A setting in policy.yaml and what it gave."""

    settings: Settings
    speedup: Mapping[str, float]  # by currency
    score: float


@dataclass(frozen=True)
class Stored:
    """What policy.yaml holds of a policy."""

    chosen: Point
    target: float | None  # None where a permitted loss was asked for
    histogram: Sequence[int]  # units per exit on the calibration rows
    frontier: Sequence[Point]
    currency: str
    batch_size: int
    precision: str
    limits: Limits
    calibration: Mapping[str, Any]  # Origin of the rows that chose, their number and content hash

    def point(self, speedup: float) -> Point | None:
        """The setting for a speed-up, by the rule that calibrate picks with; None when none is that fast."""
        found = pick(self.frontier, self.currency, speedup)
        return found if found.speedup[self.currency] >= REACHED * speedup else None

    @property
    def fastest(self) -> float:
        """The greatest speed-up that it has a setting for."""
        return max(point.speedup[self.currency] for point in self.frontier)


def stored(model: Artifact) -> dict[str, Stored]:
    """What was calibrated, by policy. A missing precision means fp32."""
    return {name: _stored(entry, model) for name, entry in model.policies.get("policies", {}).items()}


def _stored(entry: Mapping[str, Any], model: Artifact) -> Stored:
    chosen = entry["chosen"]
    return Stored(
        _point(chosen),
        chosen["target_speedup"],
        chosen["exit_histogram"],
        [_point(point) for point in entry["frontier"]],
        entry["currency"],
        entry["batch_size"],
        entry.get("precision", "fp32"),
        Limits.from_dict(entry.get("limits", {}), model.card.labels),
        entry["calibration"],
    )


def _point(plain: Mapping[str, Any]) -> Point:
    return Point(dict(plain["settings"]), plain["speedup"], plain["score"])


def default_policy(model: Artifact) -> str:
    """The policy where nobody names one: what calibrate stored last, else the task's."""
    name: str = model.policies.get("default", model.default_policy)
    return name


def pick(found: Sequence[S], currency: str, target: float) -> S:
    """The best score within the window around the target (ties: the slower), else the slowest setting above it.

    When nothing is that fast, the fastest.
    """
    low, high = (edge * target for edge in WINDOW)
    near = [c for c in found if low <= c.speedup[currency] <= high]
    if near:
        best = max(c.score for c in near)
        return min((c for c in near if c.score == best), key=lambda c: c.speedup[currency])
    above = [c for c in found if c.speedup[currency] > high]
    if above:
        return min(above, key=lambda c: c.speedup[currency])
    return max(found, key=lambda c: c.speedup[currency])


def full_model(model: Artifact, registry: Registry) -> Schedule:
    """`fixed` with exit E: every layer, only the last head run."""
    shape = model.model.shape
    return schedule("fixed", registry.policy("fixed"), {"exit": shape.exits}, shape)


def held_settings(choice: Choice, names: Sequence[str], registry: Registry) -> dict[str, dict[str, Any]]:
    """Settings given beside the names of policies, sorted to the policies that have them.

    `policy.KNOB` belongs to every policy of the run that has such a setting, `policy.NAME.KNOB` to one.

    Raises:
        UsageError: no policy of the run has such a setting.
    """
    fields = {name: {field.name for field in dataclasses.fields(registry.policy(name))} for name in names}  # type: ignore[arg-type]
    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in choice.options.items():
        if isinstance(value, Mapping):
            if key not in settings:
                raise UsageError(one_of("policy in this run", key, names))
            settings[key].update(value)
            continue
        having = [name for name in names if key in fields[name]]
        if not having:
            known = sorted(set().union(*fields.values()))
            raise UsageError(one_of("setting of the policies of this run", key, known))
        for name in having:
            settings[name].setdefault(key, value)
    return settings


def plan(
    model: Artifact,
    registry: Registry,
    choice: Choice | None,
    speedup: float | None = None,
    max_exit: int | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Schedule:
    """The schedule to answer with: a policy as asked, else as calibrated, else the full model (with a notice).

    With `max_exit`, a deadline, everybody is answered at that exit at the latest.

    Raises:
        UsageError: settings are missing because the policy was not calibrated, or the speed-up is out of reach.
    """
    found = _plan(model, registry, choice, speedup, warn)
    if max_exit is None:
        return found
    limits = replace(found.limits, max_exit=max_exit)
    limits.check(found.name, registry.policy(found.name), model.model.shape)
    return replace(found, limits=limits)


def _plan(
    model: Artifact, registry: Registry, choice: Choice | None, speedup: float | None, warn: Callable[[str], None]
) -> Schedule:
    known = stored(model)
    if choice is None or not (choice.name or choice.options):
        if not known:
            if speedup is not None:
                raise UsageError(
                    f"{model.folder} has not been calibrated, so there is no setting for {speedup:g}x. Run "
                    f"'exitkit calibrate {model.folder} --target-speedup {speedup:g}x' first."
                )
            warn(f"{model.folder} has not been calibrated: the full model answers every row")
            return full_model(model, registry)
        choice = Choice(name=[default_policy(model)])
    elif not choice.name:
        choice = Choice(name=[default_policy(model)], **choice.options)
    if len(choice.name) != 1:
        raise UsageError(f"--policy: predict takes one policy, not {len(choice.name)}.")
    name = choice.name[0]
    policy = registry.policy(name)
    given = held_settings(choice, [name], registry)[name]
    if name in known:
        if (told := _of_other_precision(model, name, known[name])) is not None:
            warn(told)
        settings = {**_settings(model, name, known[name], speedup), **given}
        return schedule(name, policy, settings, model.model.shape, known[name].limits)
    if speedup is not None and not given:
        others = f" Calibrated: {', '.join(known)}." if known else ""
        raise UsageError(
            f"policy '{name}' has not been calibrated on {model.folder}, so there is no setting for {speedup:g}x."
            f"{others} Run 'exitkit calibrate {model.folder} --policy {name} --target-speedup {speedup:g}x' first."
        )
    if not given and name != "fixed":  # which has nothing to calibrate
        warn(f"policy '{name}' has not been calibrated: it runs with its default settings")
    return schedule(name, policy, given, model.model.shape, NONE)


def _settings(model: Artifact, name: str, entry: Stored, speedup: float | None) -> Settings:
    point = entry.chosen if speedup is None else entry.point(speedup)
    if point is None:
        raise UsageError(
            f"policy '{name}' reaches {entry.fastest:.2f}x in {entry.currency} on {model.folder}, not {speedup:g}x."
        )
    return point.settings


def _of_other_precision(model: Artifact, name: str, entry: Stored) -> str | None:
    """What to say where a policy was calibrated in another precision than the model runs in."""
    then, now = entry.precision, runtime.precision_of(model.model.models[-1].stock.dtype)
    if then == now:
        return None
    return (
        f"policy '{name}' was calibrated in {then}, and {model.folder} runs in {now}: a few rows per thousand may "
        f"leave at other exits, and speed-ups in time are those of {then}. Calibrate with --precision {now} to know "
        "them."
    )
