"""A threshold for every exit instead of one for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from exitkit.artifacts.plans import pick
from exitkit.calibration.search import Candidate, Evaluate, refined
from exitkit.engine.schedule import Settings, knob_range, off_value, schedule
from exitkit.errors import UsageError
from exitkit.policy import ExitPolicy, Knob, Shape, knobs

PASSES = 3
FACTORS = (0.0, 0.3, 0.6, 1.6, 3.0)
STEPS = 14
ALONG = 60
NEAR = (0.6, 1.7)  # of the target, which the clock may move: here candidates with a common threshold give way

Multipliers = tuple[float, ...]
Worth = tuple[float, float, int]


@dataclass(frozen=True)
class Search:
    """What stays the same while thresholds are tried.

    A threshold is strict + min(1, scale · multiplier) · (eager − strict), one multiplier per exit: `scale` moves all of
    them together to reach a speed-up, the multipliers say how exits differ. 0 turns an exit off: nobody is asked there,
    which the clock notices.
    """

    name: str
    policy: type[ExitPolicy]
    knob: Knob
    base: Settings
    shape: Shape
    faithful: Evaluate
    currency: str
    _known: dict[tuple[float, ...], Candidate] = field(default_factory=dict)

    def thresholds(self, scale: float, multipliers: Multipliers) -> tuple[float, ...]:
        """[E − 1]"""
        low, high = knob_range(self.knob, self.shape)
        strict, eager = (low, high) if self.knob.raising == "earlier" else (high, low)
        off = off_value(self.knob, self.shape) if self.knob.off is not None else strict
        return tuple(
            off if m == 0 else float(f"{strict + min(1.0, scale * m) * (eager - strict):.6g}") for m in multipliers
        )

    def given(self, thresholds: tuple[float, ...], evaluate: Evaluate) -> Candidate:
        """The candidate of some thresholds."""
        settings = {**self.base, self.knob.name: list(thresholds)}
        return evaluate(schedule(self.name, self.policy, settings, self.shape))

    def at(self, scale: float, multipliers: Multipliers) -> Candidate:
        """What is true to the full model, and how fast, at a scale."""
        thresholds = self.thresholds(scale, multipliers)
        if thresholds not in self._known:
            self._known[thresholds] = self.given(thresholds, self.faithful)
        return self._known[thresholds]

    def most(self, multipliers: Multipliers) -> float:
        """The scale at which every threshold that moves is as lax as it can be."""
        return 1 / min(m for m in multipliers if m > 0)

    def reaching(self, target: float, multipliers: Multipliers) -> tuple[float, Candidate]:
        """The smallest scale, and its setting, that reaches a speed-up; the largest where none does."""
        low, high = 1e-6, self.most(multipliers)
        best = self.at(high, multipliers)
        if best.speedup[self.currency] < target:
            return high, best
        for _ in range(STEPS):
            middle = float(np.sqrt(low * high))
            tried = self.at(middle, multipliers)
            if tried.speedup[self.currency] >= target:
                high, best = middle, tried
            else:
                low = middle
        return high, best

    def worth(self, candidate: Candidate, target: float, multipliers: Multipliers) -> Worth:
        """What is compared: first to get to the target at all, then to be true, then to ask fewer exits."""
        return min(candidate.speedup[self.currency], target), candidate.score, multipliers.count(0)


def candidates(
    name: str,
    policy: type[ExitPolicy],
    found: Sequence[Candidate],
    shape: Shape,
    evaluate: Evaluate,
    faithful: Evaluate,
    currency: str,
    target: float,
    advance: Callable[[], None] = lambda: None,
) -> list[Candidate]:
    """Settings with a threshold per exit around a target: coordinate by coordinate from the best common threshold.

    Each exit's threshold in turn is made stricter or laxer while the others move so that the speed-up stays; what
    is truer to the full model is kept. Labels would be the wrong judge: a few hundred of them say less about five
    thresholds than they leave to chance. The last settings are then followed over all speed-ups. Away from the target
    common thresholds stay beside them.

    Args:
        name: the policy's.
        policy: its class; the first knob declared `per_exit` is searched.
        found: settings with a common threshold.
        shape: the model's.
        evaluate: what a schedule gives.
        faithful: the same, with `Task.faith` in the full model for a score.
        currency: of the target.
        target: the speed-up to search at.
        advance: called at most `trials(shape)` times, once for each change that is tried.
    """
    knob = varying(name, policy, shape)
    start = pick(found, currency, target)
    base = {key: value for key, value in start.settings.items() if key != knob.name}
    search = Search(name, policy, knob, base, shape, faithful, currency)
    multipliers = (1.0,) * (shape.exits - 1)
    scale, best = search.reaching(target, multipliers)
    for _ in range(PASSES):
        before = multipliers
        for exit in range(shape.exits - 1):
            for factor in FACTORS:
                advance()
                value = multipliers[exit] * factor if multipliers[exit] else factor
                trial = (*multipliers[:exit], value, *multipliers[exit + 1 :])
                if trial == multipliers or not any(trial):
                    continue
                reached, tried = search.reaching(target, trial)
                if search.worth(tried, target, trial) > search.worth(best, target, multipliers):
                    scale, multipliers, best = reached, trial, tried
        if multipliers == before:
            break
    path = refined(
        lambda scale: search.given(search.thresholds(scale, multipliers), evaluate),
        sorted({scale, *map(float, np.geomspace(1e-4, search.most(multipliers), 17))}),
        currency,
        ALONG,
    )
    low, high = NEAR[0] * target, min(NEAR[1] * target, max(one.speedup[currency] for one in path))
    others = [one for one in found if not low <= one.speedup[currency] <= high]
    return sorted([*others, *path], key=lambda candidate: candidate.speedup[currency])


def varying(name: str, policy: type[ExitPolicy], shape: Shape) -> Knob:
    """The knob that is searched exit by exit.

    Raises:
        UsageError: the policy has no knob that may differ from exit to exit, or the model has two exits only.
    """
    knob = next((knob for knob in knobs(policy, shape.task) if knob.per_exit and knob.kind is float), None)
    if knob is None:
        raise UsageError(f"--per-exit: policy '{name}' has no setting that may differ from exit to exit.")
    if shape.exits < 3:
        raise UsageError("--per-exit: with two exits there is only one threshold.")
    return knob


def trials(shape: Shape) -> int:
    """How many changes are tried at most."""
    return PASSES * (shape.exits - 1) * len(FACTORS)
