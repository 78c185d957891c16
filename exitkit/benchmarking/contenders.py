"""Which settings take part in a benchmark, and that none of them was chosen on the rows that are scored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exitkit.artifact import Artifact
from exitkit.calibration.calibrate import (
    calibration_rows,
    chosen_metric,
    columns_of,
    confirm,
    held_settings,
)
from exitkit.calibration.study import Study
from exitkit.config import BenchmarkConfig, Choice
from exitkit.data.sources import Origin, Rows, reread
from exitkit.data.splits import texts
from exitkit.errors import ExitkitError, UsageError
from exitkit.measure import full_model
from exitkit.plugins import Registry
from exitkit.prediction.predictor import limits_of, point_for
from exitkit.settings import Schedule, check, off, schedule
from exitkit.trace import Trace

log = logging.getLogger("exitkit")

PACKED = "packed full depth"  # what every speed-up is against
DRIFT = 0.1
SAME_ROWS = 0.5


@dataclass(frozen=True)
class Contender:
    """A setting that takes part."""

    key: str
    plan: Schedule
    target: float | None
    currency: str | None
    calibrated_histogram: Sequence[int] | None = None


def contenders(model: Artifact, registry: Registry, settings: BenchmarkConfig, rows: Rows) -> list[Contender]:
    """Every policy at every target, calibrated where it must be."""
    choice = settings.policy or Choice()
    stored = model.policies.get("policies", {})
    names = choice.name or [model.policies.get("default", model.default_policy)]
    given = held_settings(choice, names, registry)
    shape = model.model.shape
    studies: dict[str, Study] = {}
    found: list[Contender] = []
    for name in names:
        policy = registry.policy(name)
        check(name, policy, shape)
        if given[name]:
            plan = schedule(name, policy, given[name], shape)
            found.append(Contender(f"{name} as given", plan, None, None))
            continue
        entry = stored.get(name)
        if settings.speedups is None and entry is not None:
            _must_be_other_rows(model, entry["calibration"], rows)
            chosen = entry["chosen"]
            plan = schedule(name, policy, chosen["settings"], shape, limits_of(entry, model))
            found.append(
                Contender(
                    f"{name} as calibrated",
                    plan,
                    chosen["target_speedup"],
                    entry["currency"],
                    chosen["exit_histogram"],
                )
            )
            continue
        for target in settings.speedups or [1.0, 2.0, 3.0]:
            found.append(_at_target(model, registry, settings, rows, name, entry, target, studies))
    return found


def _at_target(
    model: Artifact,
    registry: Registry,
    settings: BenchmarkConfig,
    rows: Rows,
    name: str,
    entry: Mapping[str, Any] | None,
    target: float,
    studies: dict[str, Study],
) -> Contender:
    """A policy at a target: off for 1x, from policy.yaml where that fits, else calibrated now."""
    shape, policy = model.model.shape, registry.policy(name)
    currency = settings.currency or (entry["currency"] if entry else "time")
    key = f"{name} {target:g}x"
    if target == 1:
        return Contender(key, off(name, policy, shape), target, currency)
    elsewhere = settings.calibration_data is not None or settings.calibration_split is not None
    fits = entry is not None and entry["currency"] == currency and not elsewhere
    if fits and currency == "time":
        assert entry is not None
        fits = entry["batch_size"] == settings.batch_size[0]
    if entry is not None and fits:
        chosen = entry["chosen"]
        point = point_for(entry, target)
        if chosen["target_speedup"] == target:
            _must_be_other_rows(model, entry["calibration"], rows)
            plan = schedule(name, policy, chosen["settings"], shape, limits_of(entry, model))
            return Contender(key, plan, target, currency, chosen["exit_histogram"])
        if point is not None:
            _must_be_other_rows(model, entry["calibration"], rows)
            plan = schedule(name, policy, point.settings, shape, limits_of(entry, model))
            return Contender(key, plan, target, currency)
    study = studies.get("study")
    if study is None:
        study = studies["study"] = _study(model, registry, settings, rows)
    study.limits = limits_of(entry or {}, model)
    candidates = study.candidates(name, {}, currency)
    live, _ = confirm(study, name, {}, candidates, currency, target)
    if live.speedup[currency] < 0.97 * target:
        log.warning(
            "policy '%s' does not reach %gx in %s; its fastest, %.2fx, is shown",
            name,
            target,
            currency,
            live.speedup[currency],
        )
    plan = study.plan(name, live.candidate.settings)
    return Contender(key, plan, target, currency, live.trace.histogram(shape.exits))


def _study(model: Artifact, registry: Registry, settings: BenchmarkConfig, rows: Rows) -> Study:
    data = settings.calibration_data
    if data is None and settings.calibration_split is not None:
        data = settings.data
    chosen = calibration_rows(model, data, settings.calibration_split, columns_of(settings))
    _refuse_same(chosen, rows)
    metric = chosen_metric(settings.metric, model, chosen)
    return Study(model, registry, chosen, metric, settings.batch_size[0])


def _must_be_other_rows(model: Artifact, calibration: Mapping[str, Any], rows: Rows) -> None:
    """Refuse to score rows that chose the stored settings."""
    try:
        chosen = reread(Origin.from_dict(calibration), model.task, calibration["hash"])
    except ExitkitError:
        log.warning("the calibration rows are not there any more: whether they are scored here is unknown")
        return
    _refuse_same(chosen, rows)


def _refuse_same(chosen: Rows, rows: Rows) -> None:
    calibrated, scored = set(texts(chosen)), set(texts(rows))
    both = len(calibrated & scored)
    if 0 < both <= SAME_ROWS * min(len(calibrated), len(scored)):
        log.warning("%d of the %d texts to score are among the calibration rows too", both, len(scored))
    elif both:
        raise UsageError(
            f"the rows to score (split '{rows.origin.split}' of {rows.origin.source}) are among those that chose the "
            "settings, so their score would flatter. Score other rows with --data/--split, or calibrate on others "
            "with --calibration-data/--calibration-split."
        )


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
