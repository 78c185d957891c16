"""Settings of a policy that must be run to be judged: few runs, spread over what can be had in speed-up and score.

Where decisions change what later layers read, no recording tells what another setting would do: every setting costs a
pass over the rows. All knobs that are numbers or choices are searched at once, because they work together.

The search is a function of what settings give and of a seed, generation by generation. So an interrupted one is gone
on with by starting it again over runs that remember (`runs.Runs`): it asks for the same settings in the same order.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import create_trial
from scipy.stats import qmc

from exitkit.artifacts.plans import WINDOW
from exitkit.calibration.search import Candidate, Evaluate
from exitkit.engine.schedule import Settings, knob_range, off, schedule
from exitkit.policy import ExitPolicy, Knob, Shape, knobs

log = logging.getLogger("exitkit")

GENERATIONS = 6
SIZE = 8  # settings of a generation
NEARER = 6  # settings that are tried between two neighbours of a target
GAP = math.log(1.02)  # neighbours that are closer than this in speed-up have nothing to find between them

Places = Mapping[str, float]
"""Where every knob stands on its axis."""


@dataclass(frozen=True)
class Axis:
    """A knob as the search sees it: places from 0 to 1 for real values, else the number of one of its values."""

    knob: Knob
    low: float
    high: float

    @property
    def values(self) -> Sequence[Any]:
        """What the knob may be, where that can be counted; empty where it cannot."""
        if self.knob.choices is not None:
            return self.knob.choices
        return range(int(self.low), int(self.high) + 1) if self.knob.kind is int else ()

    @property
    def ordered(self) -> bool:
        """Whether neighbouring places are alike."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def distribution(self) -> BaseDistribution:
        """The places, for the sampler."""
        if not self.values:
            return FloatDistribution(0.0, 1.0)
        last = len(self.values) - 1
        return IntDistribution(0, last) if self.ordered else CategoricalDistribution(list(range(last + 1)))

    @property
    def ends(self) -> tuple[float, ...]:
        """The places where most is to be gained: the eager end, or both where that depends on other knobs."""
        if not self.ordered:
            return ()
        first, last = 0.0, float(len(self.values) - 1) if self.values else 1.0
        if self.knob.raising == "mixed":
            return (first, last)
        downwards = bool(self.values) and self.knob.raising == "later"  # real values turn round by themselves
        return (first,) if downwards else (last,)

    def value(self, place: float) -> Any:
        """The knob's value. Real ones lie closer together towards the strict end, where few exits are many."""
        if self.values:
            return self.values[round(place)]
        span = self.high - self.low
        if self.knob.raising == "later":
            number = self.high - span * place**2
        else:
            number = self.low + span * (place if self.knob.raising == "mixed" else place**2)
        return float(f"{number:.6g}")

    def place(self, value: Any) -> float:
        """The inverse of `value`. What lies outside, such as an off value, is at the end that is nearer."""
        if self.values:
            known = list(self.values)
            return float(known.index(value)) if value in known else float(len(known) - 1)
        share = (min(max(float(value), self.low), self.high) - self.low) / (self.high - self.low)
        if self.knob.raising == "later":
            return math.sqrt(1 - share)
        return share if self.knob.raising == "mixed" else math.sqrt(share)

    def at(self, share: float) -> float:
        """The place at a share from 0 to 1 of the axis."""
        return float(min(int(share * len(self.values)), len(self.values) - 1)) if self.values else share

    def middle(self, low: float, high: float) -> float:
        """The place between two; the first of them where there is nothing between."""
        if not self.ordered:
            return low
        return float(round((low + high) / 2)) if self.values else (low + high) / 2


@dataclass(frozen=True)
class Space:
    """All that may be turned, and what stays."""

    name: str
    policy: type[ExitPolicy]
    held: Mapping[str, Any]
    shape: Shape
    axes: tuple[Axis, ...]

    def settings(self, places: Places) -> Settings:
        """The settings at some places."""
        return {**self.held, **{axis.knob.name: axis.value(places[axis.knob.name]) for axis in self.axes}}

    def places(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """Where some settings stand."""
        return {axis.knob.name: axis.place(settings[axis.knob.name]) for axis in self.axes}

    def between(self, low: Candidate, high: Candidate) -> Settings:
        """Settings halfway between two."""
        one, other = self.places(low.settings), self.places(high.settings)
        return self.settings(
            {axis.knob.name: axis.middle(one[axis.knob.name], other[axis.knob.name]) for axis in self.axes}
        )

    def run(self, evaluate: Evaluate, places: Places) -> Candidate:
        """What the settings at some places give."""
        return evaluate(schedule(self.name, self.policy, self.settings(places), self.shape))


def space(name: str, policy: type[ExitPolicy], held: Mapping[str, Any], shape: Shape) -> Space:
    """Every knob that is not held and has bounds or choices. Others keep their defaults, with a notice."""
    axes = []
    for knob in knobs(policy, shape.task):
        if knob.name in held:
            continue
        low, high = knob_range(knob, shape)
        if knob.choices is None and (knob.kind not in (int, float) or not math.isfinite(high - low)):
            log.warning("policy.%s.%s has no bounds to search between and keeps its default", name, knob.name)
        elif knob.choices is not None or high > low:
            axes.append(Axis(knob, low, high))
    return Space(name, policy, held, shape, tuple(axes))


def candidates(where: Space, evaluate: Evaluate, currency: str, seed: int = 0) -> list[Candidate]:
    """Settings spread over the frontier of speed-up and score, slow to fast; off is among them if nothing is held.

    At most GENERATIONS · SIZE settings are tried, or all of them where there are no more.

    Args:
        where: what may be turned.
        evaluate: what a schedule gives.
        currency: of the speed-up.
        seed: the same seed asks for the same settings.
    """
    found = [] if where.held else [evaluate(off(where.name, where.policy, where.shape))]
    everything = _everything(where)
    if everything is not None:
        found += [where.run(evaluate, places) for places in everything]
    else:
        found = _generations(where, evaluate, currency, seed, found)
    unlike = {str(sorted(candidate.settings.items())): candidate for candidate in found}
    return sorted(unlike.values(), key=lambda candidate: candidate.speedup[currency])


def _everything(where: Space) -> Iterator[Places] | None:
    """All places, where there are few enough of them."""
    if not all(axis.values for axis in where.axes):
        return None
    if math.prod(len(axis.values) for axis in where.axes) > GENERATIONS * SIZE:
        return None
    names = [axis.knob.name for axis in where.axes]
    grids = itertools.product(*(range(len(axis.values)) for axis in where.axes))
    return (dict(zip(names, map(float, numbers), strict=True)) for numbers in grids)


def _generations(
    where: Space, evaluate: Evaluate, currency: str, seed: int, start: Sequence[Candidate]
) -> list[Candidate]:
    """First the ends of all knobs and an even spread; then generations, half guided by a model, half filling gaps.

    The model are tree-structured Parzen estimators for several objectives, from optuna, asked for half a generation at
    once. With this few runs they come within 2 % of the volume below a fine grid's frontier, where genetic search
    (NSGA-II) is no better than chance. But they dwell on plateaus; halving the widest gap of the frontier does not.
    """
    distributions = {axis.knob.name: axis.distribution for axis in where.axes}
    found = list(start)
    with _quiet():
        study = optuna.create_study(directions=["maximize", "maximize"])

        def run(places: Places) -> None:
            candidate = where.run(evaluate, places)
            values = [_log_speedup(candidate, currency, where), candidate.score]
            study.add_trial(create_trial(params=dict(places), distributions=distributions, values=values))
            found.append(candidate)

        for places in _first(where, seed):
            run(places)
        for generation in range(1, GENERATIONS):
            study.sampler = TPESampler(seed=seed * GENERATIONS + generation, multivariate=True, n_startup_trials=1)
            asked = [study.ask(distributions) for _ in range(SIZE // 2)]
            for trial in asked:
                candidate = where.run(evaluate, trial.params)
                study.tell(trial, [_log_speedup(candidate, currency, where), candidate.score])
                found.append(candidate)
            for _ in range((generation + 1) * SIZE - (len(found) - len(start))):
                settings = _widest(where, found, currency)
                if settings is None:
                    break
                run(where.places(settings))
    return found


def _first(where: Space, seed: int) -> Iterator[Places]:
    """Where the search begins: one knob at an end and the others at their defaults, then scrambled Sobol points."""
    usual = where.places({axis.knob.name: axis.knob.default for axis in where.axes})
    ends = [{**usual, axis.knob.name: end} for axis in where.axes for end in axis.ends]
    spread = qmc.Sobol(len(where.axes), rng=seed).random(SIZE)
    yield from ends
    for shares in spread[: max(SIZE - len(ends), SIZE // 2)]:
        yield {axis.knob.name: axis.at(float(share)) for axis, share in zip(where.axes, shares, strict=True)}


def _log_speedup(candidate: Candidate, currency: str, where: Space) -> float:
    """At most that of a single layer: to skip everything is no goal."""
    return math.log(min(max(candidate.speedup[currency], 0.01), where.shape.layers))


def _unbeaten(found: Sequence[Candidate], currency: str) -> list[Candidate]:
    """Settings that no other beats in both speed-up and score, slow to fast.

    Of settings that give the same, the newest: halving towards an older one would ask for its middle again.
    """
    kept: list[Candidate] = []
    newest_first = found[::-1]
    for candidate in sorted(newest_first, key=lambda one: (-one.speedup[currency], -one.score)):
        if not kept or candidate.score > kept[-1].score:
            kept.append(candidate)
    return kept[::-1]


def _widest(where: Space, found: Sequence[Candidate], currency: str) -> Settings | None:
    """Settings in the middle of the widest gap in speed-up between unbeaten ones; None when there is none to fill."""
    gaps = [
        (_log_speedup(high, currency, where) - _log_speedup(low, currency, where), number, low, high)
        for number, (low, high) in enumerate(itertools.pairwise(_unbeaten(found, currency)))
    ]
    for gap, _, low, high in sorted(gaps, key=lambda one: (-one[0], one[1])):
        middle = where.between(low, high)
        if gap > GAP and all(middle != one.settings for one in found):
            return middle
    return None


def nearer(
    where: Space, found: Sequence[Candidate], evaluate: Evaluate, currency: str, target: float
) -> list[Candidate]:
    """`found` and, unless the window around a target holds a good setting, settings halfway between those beside it.

    A good one scores as much as the next faster setting that nothing beats. Halving stops there, after NEARER runs, or
    when the knobs cannot be halved any more.
    """
    found = list(found)
    low, high = (edge * target for edge in WINDOW)
    for _ in range(NEARER):
        faster = [one for one in _unbeaten(found, currency) if one.speedup[currency] > high]
        slower = [one for one in found if one.speedup[currency] < low]
        within = [one for one in found if low <= one.speedup[currency] <= high]
        if not (faster and slower) or any(one.score >= faster[0].score for one in within):
            break
        good = faster[0].score
        newest = found[::-1]  # of settings that give the same
        above = min(  # as good as that one, and perhaps slower
            (one for one in newest if one.speedup[currency] > high and one.score >= good),
            key=lambda one: one.speedup[currency],
        )
        slower = [one for one in newest if one.speedup[currency] < low]
        below = [max(slower, key=lambda one: (min(one.score, good), one.speedup[currency]))]
        if not within:
            below.append(max(slower, key=lambda one: one.speedup[currency]))
        halves = [where.between(one, above) for one in below]
        new = [half for half in halves if all(half != one.settings for one in found)]
        if not new:
            break
        found.append(where.run(evaluate, where.places(new[0])))
    return sorted(found, key=lambda candidate: candidate.speedup[currency])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without optuna's log lines and its notices of experimental features."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
