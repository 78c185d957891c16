"""A threshold for every exit instead of one for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exitkit.calibration.search import Candidate, Evaluate, pick
from exitkit.errors import UsageError
from exitkit.policy import ExitPolicy, Knob, Shape, knobs
from exitkit.settings import knob_range, off_value, schedule

PASSES = 3
FACTORS = (0.0, 0.3, 0.6, 1.6, 3.0)
STEPS = 14
ALONG = 60


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
    base: dict[str, object]
    shape: Shape
    faithful: Evaluate
    currency: str

    def at(self, scale: float, multipliers: tuple[float, ...], evaluate: Evaluate | None = None) -> Candidate:
        """One setting."""
        low, high = knob_range(self.knob, self.shape)
        strict, eager = (low, high) if self.knob.raising == "earlier" else (high, low)
        off = off_value(self.knob, self.shape) if self.knob.off is not None else strict
        values = [off if m == 0 else _rounded(strict + min(1.0, scale * m) * (eager - strict)) for m in multipliers]
        plan = schedule(self.name, self.policy, {**self.base, self.knob.name: values}, self.shape)
        return (evaluate or self.faithful)(plan)

    def most(self, multipliers: tuple[float, ...]) -> float:
        """The scale at which every threshold that moves is as lax as it can be."""
        return 1 / min((m for m in multipliers if m > 0), default=1.0)

    def reaching(self, target: float, multipliers: tuple[float, ...]) -> tuple[float, Candidate]:
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


def candidates(
    name: str,
    policy: type[ExitPolicy],
    found: Sequence[Candidate],
    shape: Shape,
    evaluate: Evaluate,
    faithful: Evaluate,
    currency: str,
    target: float,
) -> list[Candidate]:
    """Settings with a threshold per exit around a target: coordinate by coordinate from the best common threshold.

    Each exit's threshold in turn is made stricter or laxer while the others move so that the speed-up stays; what
    is truer to the full model is kept. Labels would be the wrong judge: a few hundred of them say less about five
    thresholds than they leave to chance. The last settings are then followed over all speed-ups.

    Args:
        name: the policy's.
        policy: its class; the first knob declared `per_exit` is searched.
        found: settings with a common threshold.
        shape: the model's.
        evaluate: what a schedule gives.
        faithful: the same, with `Task.faith` in the full model for a score.
        currency: of the target.
        target: the speed-up to search at.

    Raises:
        UsageError: the policy has no knob that may differ from exit to exit, or the model has two exits only.
    """
    knob = next((knob for knob in knobs(policy, shape.task) if knob.per_exit and knob.kind is float), None)
    if knob is None:
        raise UsageError(f"--per-exit: policy '{name}' has no setting that may differ from exit to exit.")
    if shape.exits < 3:
        raise UsageError("--per-exit: with two exits there is only one threshold.")
    start = pick(found, currency, target)
    base = {key: value for key, value in start.settings.items() if key != knob.name}
    search = Search(name, policy, knob, base, shape, faithful, currency)
    multipliers = (1.0,) * (shape.exits - 1)
    scale, best = search.reaching(target, multipliers)
    for _ in range(PASSES):
        before = multipliers
        for exit in range(shape.exits - 1):
            for factor in FACTORS:
                value = multipliers[exit] * factor if multipliers[exit] else factor
                trial = (*multipliers[:exit], value, *multipliers[exit + 1 :])
                if not any(trial):
                    continue
                reached, tried = search.reaching(target, trial)
                better = (tried.score, trial.count(0)) > (best.score, multipliers.count(0))  # ties: fewer exits
                if better and tried.speedup[currency] >= target:
                    scale, multipliers, best = reached, trial, tried
        if multipliers == before:
            break
    fastest = search.at(search.most(multipliers), multipliers).speedup[currency]
    along = [float(speedup) for speedup in np.geomspace(1.0, max(fastest, 1.0), ALONG)]
    scales = [scale, *(search.reaching(speedup, multipliers)[0] for speedup in along)]
    return sorted(
        (search.at(scale, multipliers, evaluate) for scale in scales), key=lambda candidate: candidate.speedup[currency]
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
