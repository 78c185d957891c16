"""`exitkit benchmark`: what settings score on rows that chose nothing, and what they save on the clock."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exitkit import artifact, clock, config, runtime
from exitkit.artifact import Artifact
from exitkit.calibration.calibrate import (
    calibration_rows,
    chosen_metric,
    columns_of,
    confirm,
    held_settings,
)
from exitkit.calibration.study import Study
from exitkit.clock import Runner, Times
from exitkit.config import BenchmarkConfig, Choice
from exitkit.cost import prices, speedups
from exitkit.data.sources import Origin, Rows, read, reread, splits
from exitkit.data.splits import scoring_split
from exitkit.errors import ExitkitError, UsageError
from exitkit.loop import run
from exitkit.measure import full_model, on_device, run_all, score, truth_of
from exitkit.plugins import Registry, installed
from exitkit.prediction.predictor import limits_of, point_for
from exitkit.progress import bar
from exitkit.settings import Schedule, off, schedule
from exitkit.stream import Batch
from exitkit.trace import Trace

log = logging.getLogger("exitkit")

PACKED = "packed full depth"  # what every speed-up is against
PLAIN = "plain transformers, padded"
MOST_TIMED = 1000  # batches
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


def benchmark(*artifacts: str | Path, settings: BenchmarkConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Score and time artifacts under policies, beside `fixed` exits, packed full depth and plain transformers.

    Args:
        artifacts: folders; or give them in the settings.
        settings: the configuration, or its fields by name: `benchmark("runs/sst2", speedups="2x,3x")`.

    Returns:
        The command's JSON: `runs`, `baselines`, `environment`.

    Raises:
        UsageError: rows that chose a setting are to be scored, or an option is wrong.
    """
    if settings is None:
        given = {"artifacts": [Path(folder) for folder in artifacts]} if artifacts else {}
        settings = config.parse(BenchmarkConfig, {**fields, **given})
    config.require(settings, "artifacts")
    registry = installed()
    device = runtime.device(settings)
    dtype = runtime.inference_dtype(settings)
    report: dict[str, Any] = {"runs": [], "baselines": [], "environment": runtime.describe(device, dtype)}
    for folder in settings.artifacts:
        model = artifact.read(folder, registry, device, dtype)
        one = _benchmark_one(model, registry, settings)
        report["runs"] += one["runs"]
        report["baselines"] += one["baselines"]
    return report


def scored_rows(model: Artifact, settings: BenchmarkConfig) -> Rows:
    """The rows to score: those given, else the test (or validation) split of the training data."""
    columns = columns_of(settings)
    source = settings.data
    if source is None:
        source = model.card.data["source"]
        columns = Origin.from_dict(model.card.data).columns
    split = settings.split
    if split is None and (settings.data is None or len(splits(source)) > 1):
        split = scoring_split(source, columns)
    rows = read(source, split, columns, model.task, use_labels="optional")
    if settings.max_rows is not None and settings.max_rows < len(rows):
        chosen = np.random.default_rng(0).choice(len(rows), settings.max_rows, replace=False)
        rows = rows.select(np.sort(chosen).tolist())
    return rows


def _benchmark_one(model: Artifact, registry: Registry, settings: BenchmarkConfig) -> dict[str, Any]:
    rows = scored_rows(model, settings)
    metric = chosen_metric(settings.metric, model, rows)
    contenders = _contenders(model, registry, settings, rows)
    price = prices(model.model)
    truth = truth_of(rows)
    batches = on_device(rows, model, max(settings.batch_size))
    full = run_all(model, batches, full_model(model, registry), "full model")
    full_answers = model.task.answers(full.logits)

    def judged(trace: Trace) -> dict[str, Any]:
        answers = model.task.answers(trace.logits)
        scored = score(model.task, metric, truth, answers, full_answers)
        return {"counted": speedups(trace, price), **scored.as_dict()}

    traces = {c.key: run_all(model, batches, c.plan, c.key) for c in contenders}
    fixed = _fixed(model, registry)
    traces |= {name: run_all(model, batches, plan, name) for name, plan in fixed.items()}
    results = {key: judged(trace) for key, trace in traces.items()}
    for contender in contenders:
        _warn_of_drift(contender, traces[contender.key], model.model.shape.exits)
    about = {"artifact": str(model.folder), "split": rows.origin.split, "rows": len(rows)}
    runs: list[dict[str, Any]] = []
    baselines: list[dict[str, Any]] = []
    for batch_size in settings.batch_size:
        times, timed = _time(model, rows, contenders, fixed, batch_size, settings.rounds)
        for contender in contenders:
            setting = {
                "policy": contender.plan.name,
                "target": contender.target,
                "currency": contender.currency,
                "settings": contender.plan.settings,
            }
            histogram = traces[contender.key].histogram(model.model.shape.exits)
            clocked = _clocked(times, contender.key, results[contender.key], timed, batch_size)
            runs.append({**about, **setting, **clocked, "exit_histogram": histogram})
        for name in fixed:
            clocked = _clocked(times, name, results[name], timed, batch_size)
            baselines.append({**about, "name": name, **clocked})
        plain = _clocked(times, PLAIN, results[PACKED], timed, batch_size)
        baselines.append({**about, "name": PLAIN, **plain})
    return {"runs": runs, "baselines": baselines}


def _fixed(model: Artifact, registry: Registry) -> dict[str, Schedule]:
    """`fixed` at every exit, by name; at the last it is the full model."""
    shape, policy = model.model.shape, registry.policy("fixed")
    below = {f"fixed exit {exit}": schedule("fixed", policy, {"exit": exit}, shape) for exit in range(1, shape.exits)}
    return {**below, PACKED: full_model(model, registry)}


def _contenders(model: Artifact, registry: Registry, settings: BenchmarkConfig, rows: Rows) -> list[Contender]:
    """Every policy at every target, calibrated where it must be."""
    choice = settings.policy or Choice()
    stored = model.policies.get("policies", {})
    names = choice.name or [model.policies.get("default", model.task.default_policy)]
    given = held_settings(choice, names, registry)
    shape = model.model.shape
    studies: dict[str, Study] = {}
    found: list[Contender] = []
    for name in names:
        policy = registry.policy(name)
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
    live, _ = confirm(study, name, candidates, currency, target)
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
    calibrated, scored = _texts(chosen), _texts(rows)
    both = len(calibrated & scored)
    if 0 < both <= SAME_ROWS * min(len(calibrated), len(scored)):
        log.warning("%d of the %d texts to score are among the calibration rows too", both, len(scored))
    elif both:
        raise UsageError(
            f"the rows to score (split '{rows.origin.split}' of {rows.origin.source}) are among those that chose the "
            "settings, so their score would flatter. Score other rows with --data/--split, or calibrate on others "
            "with --calibration-data/--calibration-split."
        )


def _texts(rows: Rows) -> set[tuple[str, ...]]:
    names = ["text", "text_pair"] if rows.pair else ["text"]
    return set(zip(*(rows.data[name][:] for name in names), strict=True))


def _warn_of_drift(contender: Contender, trace: Trace, exits: int) -> None:
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


def _time(
    model: Artifact,
    rows: Rows,
    contenders: Sequence[Contender],
    fixed: Mapping[str, Schedule],
    batch_size: int,
    rounds: int,
) -> tuple[Times, dict[str, Any]]:
    batches = on_device(rows, model, batch_size)
    if len(batches) > MOST_TIMED:
        batches = [batches[i] for i in np.linspace(0, len(batches) - 1, MOST_TIMED).astype(int)]

    def exits(plan: Schedule) -> Runner:
        return lambda batch: run(model.model, batch, plan)

    def plain(batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model.model.stock(**batch).logits
            return logits

    runners: dict[str, Runner] = {c.key: exits(c.plan) for c in contenders}
    runners |= {name: exits(plan) for name, plan in fixed.items()}
    runners[PLAIN] = plain
    with bar(f"timing batches of {batch_size}", rounds * len(batches)) as advance:
        times = clock.interleaved(runners, batches, rounds, model.model.device, advance)
    timed = {
        "batches": len(batches),
        "rows": sum(batch["input_ids"].shape[0] for batch in batches),
        "rounds": rounds,
        "full": PACKED,
    }
    return times, timed


def _clocked(
    times: Times, key: str, result: Mapping[str, Any], timed: Mapping[str, Any], batch_size: int
) -> dict[str, Any]:
    """One contender's figures at one batch size."""
    low, mid, high = np.percentile(times.seconds[key] * 1000, [50, 95, 99])
    scores = {name: value for name, value in result.items() if name != "counted"}
    counted = dict(result["counted"])
    if key == PLAIN:
        counted = {"layers": 1.0, "flops": None}  # it multiplies padding, which is not counted
    return {
        "batch_size": batch_size,
        "speedup": {**counted, "time": times.speedup(key, timed["full"])},
        "speedup_ci": {"time": list(times.speedup_interval(key, timed["full"]))},
        **scores,
        "latency_ms": {"p50": float(low), "p95": float(mid), "p99": float(high)},
        "throughput": timed["rows"] / float(times.per_batch(key).sum()),
        "timed": {"batches": timed["batches"], "rounds": timed["rounds"]},
    }
