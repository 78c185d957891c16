"""`exitkit calibrate`: the setting of a policy that reaches a speed-up, confirmed by running it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from exitkit.artifacts import artifact, model_card
from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.cascade import learned_texts, open_artifact
from exitkit.artifacts.plans import REACHED, held_settings
from exitkit.calibration import per_exit, search, temperature
from exitkit.calibration.confirming import confirm, paced
from exitkit.calibration.reached import reaches, told
from exitkit.calibration.rows import calibration_rows, chosen_metric
from exitkit.calibration.search import Candidate
from exitkit.calibration.study import Live, Study, runs_file
from exitkit.configuration import parsing, runtime
from exitkit.configuration.config import CalibrateConfig, Choice
from exitkit.data.columns import columns_of
from exitkit.data.sources import Rows
from exitkit.engine.limits import Limits
from exitkit.engine.schedule import check, rewrites
from exitkit.errors import UsageError
from exitkit.measuring.runs import told_of_words
from exitkit.plugins import installed
from exitkit.policy import ExitPolicy, Shape, knobs
from exitkit.process import outputs

log = logging.getLogger("exitkit")

FIXED_DEPTH = 0.99
"""From this share of the units on, leaving at one exit, a setting is a fixed depth."""
FEW_ROWS = 200
STORING = 60.0
"""Seconds to wait while another calibration stores what it has found."""


def calibrate(
    folder: str | Path | None = None, settings: CalibrateConfig | None = None, **fields: Any
) -> dict[str, Any]:
    """Choose a policy's settings for a target and store them in the artifact's policy.yaml.

    Args:
        folder: the artifact; or give it in the settings.
        settings: the configuration, or its fields by name: `calibrate("runs/sst2", target_speedup=3)`.

    Returns:
        The command's JSON. `feasible` is False when the live run stayed below 0.97 × the target, in time with part of
        its interval (then `undecided` says whether the rest is above), or when no setting keeps within `max_drop`;
        policy.yaml then is left as it was, and `advice` says what would help.
    """
    if settings is None:
        settings = parsing.parse(CalibrateConfig, {**fields, **({"artifact": Path(folder)} if folder else {})})
    parsing.require(settings, "artifact")
    assert settings.artifact is not None
    with outputs.held(settings.artifact.resolve(), "calibrate", shared=True):
        return _calibrate(settings, settings.artifact)


def _calibrate(settings: CalibrateConfig, folder: Path) -> dict[str, Any]:
    """Calibrate an artifact that nobody replaces meanwhile. Others may calibrate it, too."""
    registry = installed()
    _one_policy(settings.policy)
    device = runtime.device(settings)
    model = open_artifact(folder, registry, device, runtime.inference_dtype(settings))
    if not os.access(folder, os.W_OK | os.X_OK):  # known now, before a search of minutes
        raise UsageError(f"{folder}: cannot write there, and {artifact.POLICY} belongs there. See who may write.")
    name = next(iter(settings.policy.name), model.default_policy)
    held = held_settings(settings.policy, [name], registry)[name]
    check(name, registry.policy(name), model.model.shape)
    if settings.per_exit:
        _check_per_exit(name, held, registry.policy(name), model.model.shape)
    rows = calibration_rows(model, settings.data, settings.split, columns_of(settings))
    metric = chosen_metric(settings.metric, model, rows)
    labels = model.card.labels
    limits = Limits.from_dict({"min_exit": settings.min_exit, "never_early": settings.never_early}, labels)
    limits.check(name, registry.policy(name), model.model.shape)
    study = Study(model, registry, rows, metric, settings.batch_size, limits, keeps_runs=True)
    labels_of_units = study.sample.unit_labels()
    fitted = temperature.fit(study.recording.logits, labels_of_units, study.task) if settings.temperature else None
    if fitted:
        study.limits = replace(limits, temperatures=fitted.values)
    # Live runs of a search are kept in a file, which is one search's at a time.
    kept = outputs.held(runs_file(folder, name), "calibrate") if study.rewrites(name) else nullcontext()
    with kept:
        found = study.candidates(name, held, settings.currency)
        if settings.per_exit:
            found = _per_exit(study, name, found, settings)
        result, confirmed, found = _confirm(study, name, held, found, settings)
        result["limits"] = study.limits.as_dict(labels)
        result["temperature"] = fitted.as_dict() if fitted else None
        if _only_points(registry.policy(name), held, model.model.shape):
            result["reachable"] = [_point(candidate) for candidate in found]
        if result["feasible"]:
            _store(folder, name, _entry(model, settings, rows, confirmed, found, result))
            runs_file(model.folder, name).unlink(missing_ok=True)
        return result


def _confirm(
    study: Study, name: str, held: Mapping[str, Any], found: list[Candidate], settings: CalibrateConfig
) -> tuple[dict[str, Any], Live, list[Candidate]]:
    currency, target, undecided = settings.currency, settings.target_speedup, False
    if target is None:
        assert settings.max_drop is not None
        within = search.fastest_within(found, currency, study.score_to_lose(name), settings.max_drop)
        chosen = study.settled(within or found[0], name)
        live = study.live(name, chosen)
        feasible = within is not None and live.scored.drop <= settings.max_drop + 1e-9
        found = paced(found, live.speedup["time"] / chosen.speedup["time"])
    else:
        live, found = confirm(study, name, held, found, currency, target)
        verdict = reaches(live, currency, target)
        feasible, undecided = bool(verdict), verdict is None
    improved = search.better(found, replace(live.candidate, speedup=live.speedup), currency)
    result: dict[str, Any] = {
        "artifact": str(study.model.folder),
        "policy": name,
        "settings": live.candidate.settings,
        "currency": currency,
        "batch_size": settings.batch_size,
        "target_speedup": target,
        "max_drop": settings.max_drop,
        "predicted_speedup": live.candidate.speedup[currency],
        "measured_speedup": dict(live.speedup),
        "measured_speedup_ci": {"time": list(live.time_ci)},
        **live.scored.as_dict(),
        "feasible": feasible,
        "undecided": undecided,
        "better": _point(improved) if improved else None,
        "exit_histogram": live.trace.histogram(study.model.model.shape.exits),
        "split": study.rows.origin.split,
        "rows": len(study.rows),
        "checked_against_training": learned_texts(study.model.folder).complete,
        **told_of_words(study.sample),
    }
    if undecided:
        result["advice"] = _advice_of_clock(live, settings)
    elif not feasible:
        result["advice"] = _advice(name, found, settings, len(study.model.model.models) > 1)
    _warn_of_fixed_depth(name, result["exit_histogram"])
    if feasible and target is None and live.speedup[currency] <= 1:
        log.warning(
            "nothing is saved: within this drop no setting of '%s' is faster than the full model (%.2fx in %s)",
            name,
            live.speedup[currency],
            currency,
        )
    if feasible and live.time_ci[1] < 1:
        log.warning(
            "this setting takes longer than the full model here: %.2fx in time (95 %%: %.2f to %.2f). It saves work "
            "that the clock does not see; try larger batches, or --currency time",
            live.speedup["time"],
            *live.time_ci,
        )
    if len(study.rows) < FEW_ROWS:
        log.warning("only %d calibration rows: thresholds and scores are uncertain", len(study.rows))
    return result, live, found


def _per_exit(study: Study, name: str, found: list[Candidate], settings: CalibrateConfig) -> list[Candidate]:
    """Candidates with a threshold per exit."""
    currency, target = settings.currency, settings.target_speedup
    if target is not None:
        return study.per_exit(name, found, currency, target)
    assert settings.max_drop is not None
    within = search.fastest_within(found, currency, study.full_score, settings.max_drop)
    # Labels choose the fastest of all in the end, so nothing gives way.
    return [*found, *study.per_exit(name, found, currency, within.speedup[currency] if within else 1.0)]


def _check_per_exit(name: str, held: Mapping[str, Any], policy: type[ExitPolicy], shape: Shape) -> None:
    """Raise UsageError where a policy's threshold cannot be searched exit by exit."""
    if rewrites(policy, shape.task):
        raise UsageError(f"--per-exit: policy '{name}' changes later states, so its exits cannot be set one by one.")
    knob = per_exit.varying(name, policy, shape)
    if knob.name in held:
        raise UsageError(f"--per-exit searches policy.{name}.{knob.name}, which is given; leave one of the two out.")


def _only_points(policy: type[ExitPolicy], held: Mapping[str, Any], shape: Shape) -> bool:
    """Whether a policy has few settings, so that most speed-ups are out of reach however long one searches."""
    return all(knob.kind is not float for knob in knobs(policy, shape.task) if knob.name not in held)


def _advice(name: str, found: Sequence[Candidate], settings: CalibrateConfig, cascade: bool) -> str:
    currency = settings.currency
    if settings.target_speedup is None:
        return (
            f"no setting of '{name}' stays within {settings.max_drop} of the full model on these rows. Allow a larger "
            "--max-drop, or train longer."
        )
    fastest = max(c.speedup[currency] for c in found)
    reach = f"the fastest setting of '{name}' is {fastest:.2f}x in {currency}. "
    if settings.min_exit > 1 or settings.never_early:
        return reach + "Ask for less, or allow more: a lower --min-exit, fewer --never-early labels."
    if currency == "time":
        return reach + "Ask for less, count in flops or layers, or time a larger --batch-size."
    more = "put a smaller model first" if cascade else "train with exits at earlier layers"
    return f"{reach}Ask for less, try another policy, or {more}."


def _advice_of_clock(live: Live, settings: CalibrateConfig) -> str:
    assert settings.target_speedup is not None
    return (
        f"the clock cannot tell whether {settings.target_speedup:g}x is reached: it says {told(live, 'time')}, and "
        f"{REACHED * settings.target_speedup:.2f}x would have to lie below that. Let nothing else run here, time on "
        "more rows (--data), ask for a little less, or count in flops or layers."
    )


def _warn_of_fixed_depth(name: str, histogram: Sequence[int]) -> None:
    """Say so when all units leave at one exit before the last: that takes no policy."""
    most = max(histogram)
    exit = histogram.index(most) + 1
    if name != "fixed" and exit < len(histogram) and most >= FIXED_DEPTH * sum(histogram):
        log.warning(
            "this setting is a fixed depth: %d of %d units leave at exit %d, as with --policy fixed, whatever they are",
            most,
            sum(histogram),
            exit,
        )


def _entry(
    model: Artifact,
    settings: CalibrateConfig,
    rows: Rows,
    live: Live,
    found: Sequence[Candidate],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """What policy.yaml says of a policy."""
    return {
        "chosen": {
            "settings": dict(live.candidate.settings),
            "target_speedup": settings.target_speedup,
            "speedup": dict(live.speedup),
            "score": live.scored.score,
            "exit_histogram": result["exit_histogram"],
        },
        "frontier": [_point(candidate) for candidate in search.frontier(found, settings.currency)],
        "currency": settings.currency,
        "batch_size": settings.batch_size,
        "precision": "bf16" if settings.precision == "bf16" else "fp32",
        "threads": torch.get_num_threads(),
        "metric": live.scored.metric,
        "limits": result["limits"],
        "calibration": {**rows.origin.as_dict(), "rows": len(rows), "hash": rows.hash()},
        **({"models": list(model.content)} if model.content else {}),
    }


def _store(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Put a policy's entry beside those of others, also beside one that another calibration stores just now."""
    with outputs.held(folder / artifact.POLICY, "calibrate", patience=STORING):
        policies = {**artifact.read_policies(folder).get("policies", {}), name: dict(entry)}
        artifact.write_policies(folder, {"default": name, "policies": policies})
        model_card.refresh(folder)


def _point(candidate: Candidate) -> dict[str, Any]:
    return {
        "settings": candidate.settings,
        "speedup": {currency: round(value, 4) for currency, value in candidate.speedup.items()},
        "score": candidate.score,
    }


def _one_policy(choice: Choice) -> None:
    if len(choice.name) > 1:
        raise UsageError(f"--policy: calibrate takes one policy at a time, not {len(choice.name)}.")
