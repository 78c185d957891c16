"""Which settings take part in a benchmark, and which rows chose them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exitkit.artifacts import plans
from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.plans import Stored, full_model, held_settings
from exitkit.calibration.confirming import confirm
from exitkit.calibration.reached import reaches, told
from exitkit.calibration.rows import calibration_rows
from exitkit.calibration.study import Study
from exitkit.configuration.config import BenchmarkConfig, Choice
from exitkit.data.columns import columns_of
from exitkit.data.fingerprints import NOTHING, Hashes, hashed
from exitkit.data.sources import Origin, Rows, reread
from exitkit.data.splits import texts
from exitkit.engine.limits import NONE, Limits
from exitkit.engine.schedule import Schedule, check, off, schedule
from exitkit.engine.trace import Trace
from exitkit.errors import ExitkitError
from exitkit.plugins import Registry

log = logging.getLogger("exitkit")

PACKED = "packed full depth"  # what every speed-up is against
DRIFT = 0.1


@dataclass(frozen=True)
class Contender:
    """A setting that takes part."""

    key: str
    plan: Schedule
    target: float | None
    currency: str | None
    calibrated_histogram: Sequence[int] | None = None
    chosen_on: Mapping[str, Any] | None = None  # the stored origin of the rows that chose it, with their hash


@dataclass(frozen=True)
class Wish:
    """A contender whose setting is to be found before it can take part."""

    key: str
    name: str  # of the policy
    target: float
    currency: str
    limits: Limits


def wished(model: Artifact, registry: Registry, settings: BenchmarkConfig) -> list[Contender | Wish]:
    """Every policy at every target: as given, as stored, or to be calibrated yet."""
    choice = settings.policy or Choice()
    stored = plans.stored(model)
    names = choice.name or [plans.default_policy(model)]
    given = held_settings(choice, names, registry)
    shape = model.model.shape
    found: list[Contender | Wish] = []
    for name in names:
        policy = registry.policy(name)
        check(name, policy, shape)
        if given[name]:
            plan = schedule(name, policy, given[name], shape)
            found.append(Contender(f"{name} as given", plan, None, None))
            continue
        entry = stored.get(name)
        if settings.speedups is None and entry is not None:
            found.append(_as_stored(model, registry, name, entry, f"{name} as calibrated"))
            continue
        for target in settings.speedups or [1.0, 2.0, 3.0]:
            found.append(_at_target(model, registry, settings, name, entry, target))
    return found


def _as_stored(model: Artifact, registry: Registry, name: str, entry: Stored, key: str) -> Contender:
    plan = schedule(name, registry.policy(name), entry.chosen.settings, model.model.shape, entry.limits)
    return Contender(key, plan, entry.target, entry.currency, entry.histogram, entry.calibration)


def _at_target(
    model: Artifact,
    registry: Registry,
    settings: BenchmarkConfig,
    name: str,
    entry: Stored | None,
    target: float,
) -> Contender | Wish:
    """A policy at a target: off for 1x, from policy.yaml where that fits, else to be calibrated."""
    shape, policy = model.model.shape, registry.policy(name)
    currency = settings.currency or (entry.currency if entry else "time")
    key = f"{name} {target:g}x"
    if target == 1:
        return Contender(key, off(name, policy, shape), target, currency)
    elsewhere = settings.calibration_data is not None or settings.calibration_split is not None
    fits = entry is not None and entry.currency == currency and not elsewhere
    if entry is not None and fits and (currency != "time" or entry.batch_size == settings.batch_size[0]):
        if entry.target == target:
            return _as_stored(model, registry, name, entry, key)
        point = entry.point(target)
        if point is not None:
            plan = schedule(name, policy, point.settings, shape, entry.limits)
            return Contender(key, plan, target, currency, chosen_on=entry.calibration)
    return Wish(key, name, target, currency, entry.limits if entry else NONE)


def rows_to_choose(model: Artifact, settings: BenchmarkConfig, wanted: Sequence[Contender | Wish]) -> Rows | None:
    """The rows to calibrate on; None where every setting is known."""
    if not any(isinstance(one, Wish) for one in wanted):
        return None
    data = settings.calibration_data
    if data is None and settings.calibration_split is not None:
        data = settings.data
    return calibration_rows(model, data, settings.calibration_split, columns_of(settings))


def choosing_texts(model: Artifact, wanted: Sequence[Contender | Wish], to_choose: Rows | None) -> Hashes:
    """Hashes of the texts of all rows that have chosen a setting, or will."""
    found = [] if to_choose is None else [hashed(texts(to_choose))]
    stored = {one.chosen_on["hash"]: one.chosen_on for one in wanted if isinstance(one, Contender) and one.chosen_on}
    for calibration in stored.values():
        try:
            rows = reread(Origin.from_dict(calibration), model.task, calibration["hash"])
        except ExitkitError:
            log.warning("the calibration rows are not there any more: whether they are scored here is unknown")
            continue
        found.append(hashed(texts(rows)))
    return np.concatenate([NOTHING.hashes, *found])


def contenders(
    model: Artifact,
    registry: Registry,
    settings: BenchmarkConfig,
    metric: str,
    wanted: Sequence[Contender | Wish],
    to_choose: Rows | None,
) -> list[Contender]:
    """Those wished for, with settings found on `to_choose` where there are none yet."""
    if to_choose is None:
        return [one for one in wanted if isinstance(one, Contender)]
    study = Study(model, registry, to_choose, metric, settings.batch_size[0])
    return [one if isinstance(one, Contender) else _calibrated(study, one) for one in wanted]


def _calibrated(study: Study, wish: Wish) -> Contender:
    study.limits = wish.limits
    candidates = study.candidates(wish.name, {}, wish.currency)
    live, _ = confirm(study, wish.name, {}, candidates, wish.currency, wish.target)
    if not reaches(live, wish.currency, wish.target):
        log.warning(
            "policy '%s' does not reach %gx in %s for certain; its setting nearest to that, %s, is shown",
            wish.name,
            wish.target,
            wish.currency,
            told(live, wish.currency),
        )
    plan = study.plan(wish.name, live.candidate.settings)
    histogram = live.trace.histogram(study.model.model.shape.exits)
    return Contender(wish.key, plan, wish.target, wish.currency, histogram)


def warn_of_drift(contender: Contender, trace: Trace, exits: int) -> None:
    """Say so when rows leave at other exits than the calibration rows did."""
    if contender.calibrated_histogram is None:
        return
    before = np.asarray(contender.calibrated_histogram, dtype=float)
    now = np.asarray(trace.histogram(exits), dtype=float)
    moved = float(np.abs(before / before.sum() - now / now.sum()).sum() / 2)
    if moved > DRIFT:
        log.warning(
            "%s: %.0f %% of the rows leave at other exits than on the calibration rows; calibration data should look "
            "like the traffic",
            contender.key,
            100 * moved,
        )


def fixed_exits(model: Artifact, registry: Registry) -> dict[str, Schedule]:
    """`fixed` at every exit, by name; at the last it is the full model."""
    shape, policy = model.model.shape, registry.policy("fixed")
    below = {f"fixed exit {exit}": schedule("fixed", policy, {"exit": exit}, shape) for exit in range(1, shape.exits)}
    return {**below, PACKED: full_model(model, registry)}
