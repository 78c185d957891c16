"""Settings of a policy, what each would give, and the choice among them."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from exitkit.artifacts.plans import WINDOW, pick
from exitkit.engine.schedule import Schedule, Settings, checked, knob_range, off, schedule
from exitkit.errors import UsageError
from exitkit.policy import ExitPolicy, Knob, Shape, knobs

log = logging.getLogger("exitkit")

MOST_POINTS = 240  # values of a knob that are replayed
FINE = 0.004  # neighbouring points differ by less than this share of their speed-up, where the data allow
MOST_DISCRETE = 256


@dataclass(frozen=True)
class Candidate:
    """One setting and what it gives on the calibration rows."""

    settings: Settings
    speedup: Mapping[str, float]  # by currency
    score: float
    taken: torch.Tensor  # [N] exit of every unit; where layers may be skipped too, [2, N] exits and layers run


Evaluate = Callable[[Schedule], Candidate]


def candidates(
    name: str,
    policy: type[ExitPolicy],
    held: Mapping[str, Any],
    shape: Shape,
    evaluate: Evaluate,
    currency: str,
    most_points: int = MOST_POINTS,
) -> list[Candidate]:
    """Settings of a replayable policy worth considering, slow to fast; `pareto` has those of others.

    Whole-number knobs and choices are tried out in full. One real-valued knob, the first that is not held, is tried
    where the speed-up changes: first coarsely, then between neighbours that differ most. Others keep their defaults.

    Args:
        name: the policy's.
        policy: its class.
        held: settings that stay as they are.
        shape: the model's.
        evaluate: what a schedule gives.
        currency: the speed-up that guides where to look closer.
        most_points: how many values of the real-valued knob may be tried.
    """
    free = [knob for knob in knobs(policy, shape.task) if knob.name not in held]
    discrete = [knob for knob in free if knob.kind is int or knob.choices is not None]
    real = [knob for knob in free if knob.kind is float and knob.choices is None]
    for ignored in real[1:]:
        log.warning("policy.%s.%s keeps its default; set it to try another value", name, ignored.name)
    grids = [_values(knob, shape) for knob in discrete]
    combinations = list(itertools.product(*grids))
    if len(combinations) > MOST_DISCRETE:
        raise UsageError(
            f"policy '{name}' has {len(combinations)} combinations of whole-number knobs; hold some of them with "
            f"--set policy.{name}.KNOB=VALUE."
        )
    found = [evaluate(off(name, policy, shape))] if not held else []
    for values in combinations:
        base = {**held, **{knob.name: value for knob, value in zip(discrete, values, strict=True)}}
        if real:
            found += _along(name, policy, real[0], base, shape, evaluate, currency, most_points)
        else:
            found.append(evaluate(schedule(name, policy, base, shape)))
    return sorted(found, key=lambda candidate: candidate.speedup[currency])


def fastest_within(found: Sequence[Candidate], currency: str, full_score: float, max_drop: float) -> Candidate | None:
    """The fastest setting that loses at most `max_drop` against the full model; None if none does."""
    fitting = [c for c in found if full_score - c.score <= max_drop + 1e-12]
    return max(fitting, key=lambda c: c.speedup[currency], default=None)


def better(found: Sequence[Candidate], chosen: Candidate, currency: str) -> Candidate | None:
    """The fastest setting that is faster than the chosen one and scores at least as much; None if there is none."""
    enough = chosen.speedup[currency] * WINDOW[1]
    faster = [
        c
        for c in found
        if c.speedup[currency] > enough and c.score >= chosen.score and not torch.equal(c.taken, chosen.taken)
    ]
    return max(faster, key=lambda c: c.speedup[currency], default=None)


def spread(found: Sequence[Candidate], currency: str, points: int) -> list[Candidate]:
    """At most `points` settings, evenly over the speed-ups that can be had, the best scoring of those near each."""
    low, high = min(c.speedup[currency] for c in found), max(c.speedup[currency] for c in found)
    chosen = [pick(found, currency, float(target)) for target in np.geomspace(max(low, 1.0), max(high, 1.0), points)]
    return list({id(candidate): candidate for candidate in chosen}.values())


def frontier(found: Sequence[Candidate], currency: str, points: int = 40) -> list[Candidate]:
    """Settings that no other beats in both speed-up and score, slow to fast, thinned to about `points`."""
    kept: list[Candidate] = []
    best = -math.inf
    for candidate in sorted(found, key=lambda c: (-c.speedup[currency], -c.score)):
        if candidate.score > best:
            best = candidate.score
            kept.append(candidate)
    kept.reverse()
    # Between the points where the score changes the user may still ask for a speed-up: keep those targets reachable.
    steps = {candidate.speedup[currency]: candidate for candidate in kept}
    low, high = min(c.speedup[currency] for c in found), max(c.speedup[currency] for c in found)
    for target in np.geomspace(max(low, 1.0), max(high, 1.0), points):
        candidate = pick(found, currency, float(target))
        steps.setdefault(candidate.speedup[currency], candidate)
    everything = sorted(steps.values(), key=lambda c: c.speedup[currency])
    if len(everything) <= 2 * points:
        return everything
    chosen = np.unique(np.linspace(0, len(everything) - 1, 2 * points).round().astype(int))
    return [everything[i] for i in chosen]


def settle(chosen: Candidate, name: str, policy: type[ExitPolicy], shape: Shape, evaluate: Evaluate) -> Candidate:
    """Move real-valued knobs to the middle of the values that give the same exits, away from the observed ones.

    The middle is a midpoint between two values that the policy compared with, so rounding does not flip a decision. Of
    a list with a value per exit each is moved by itself.
    """

    def same(knob: str, place: int, value: float) -> bool:
        tried = evaluate(schedule(name, policy, _with(chosen.settings, knob, place, value), shape))
        return torch.equal(tried.taken, chosen.taken)

    for knob in knobs(policy, shape.task):
        low, high = knob_range(knob, shape)
        given = chosen.settings[knob.name]
        for place, value in enumerate(given if isinstance(given, list) else [given]):
            if not (isinstance(value, float) and low <= value <= high and math.isfinite(high - low)):
                continue
            with_value = partial(same, knob.name, place)
            middle = _rounded((_edge(with_value, value, low) + _edge(with_value, value, high)) / 2)
            if low <= middle <= high and with_value(middle):
                chosen = replace(chosen, settings=_with(chosen.settings, knob.name, place, middle))
    return chosen


def _with(settings: Settings, knob: str, place: int, value: float) -> Settings:
    """Settings with another value of a knob or, where it has a list, at a place of that."""
    now = settings[knob]
    return {**settings, knob: [*now[:place], value, *now[place + 1 :]] if isinstance(now, list) else value}


def _edge(same: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last value between `inside` and `outside` that still is the same."""
    if same(outside):
        return outside
    for _ in range(26):
        middle = (inside + outside) / 2
        if same(middle):
            inside = middle
        else:
            outside = middle
    return inside


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _values(knob: Knob, shape: Shape) -> list[Any]:
    if knob.choices is not None:
        return list(knob.choices)
    low, high = knob_range(knob, shape)
    if not (math.isfinite(low) and math.isfinite(high)):
        return [knob.default]
    return list(range(int(low), int(high) + 1))


def _along(
    name: str,
    policy: type[ExitPolicy],
    knob: Knob,
    base: Settings,
    shape: Shape,
    evaluate: Evaluate,
    currency: str,
    most_points: int,
) -> list[Candidate]:
    low, high = knob_range(knob, shape)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError(
            f"policy.{name}.{knob.name} has no bounds to search between; set it with --set policy.{name}.{knob.name}=…"
        )

    def at(value: float) -> Candidate:
        setting = {**base, knob.name: checked(name, knob, value, shape)}
        return evaluate(schedule(name, policy, setting, shape))

    return refined(at, sorted({float(v) for v in np.linspace(low, high, 17)}), currency, most_points)


def refined(
    at: Callable[[float], Candidate], grid: Sequence[float], currency: str, most_points: int
) -> list[Candidate]:
    """Candidates along one number: those of an ascending grid, then between neighbours whose speed-ups differ most."""
    seen = {value: at(value) for value in grid}
    heap: list[tuple[float, float, float]] = []

    def push(left: float, right: float) -> None:
        a, b = seen[left].speedup[currency], seen[right].speedup[currency]
        gap = abs(a - b) / max(a, b)
        if gap > FINE and right - left > 1e-7 * (grid[-1] - grid[0]):
            heapq.heappush(heap, (-gap, left, right))

    for left, right in itertools.pairwise(grid):
        push(left, right)
    while heap and len(seen) < most_points:
        _, left, right = heapq.heappop(heap)
        middle = (left + right) / 2
        seen[middle] = at(middle)
        push(left, middle)
        push(middle, right)
    return list(seen.values())
