"""A threshold for every exit instead of one for all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exitkit.calibration.search import Candidate, Evaluate, pick
from exitkit.errors import UsageError
from exitkit.policy import ExitPolicy, Knob, Shape, knobs
from exitkit.settings import knob_range, schedule

PASSES = 3
FACTORS = (0.0, 0.3, 0.6, 1.6, 3.0)
STEPS = 14
ALONG = 60


@dataclass(frozen=True)
class Search:
    """What stays the same while thresholds are tried.

    A threshold is strict + min(1, scale · multiplier) · (eager − strict), one multiplier per exit: `scale` moves all of
    them together to reach a speed-up, the multipliers say how exits differ.
    """

    name: str
    policy: type[ExitPolicy]
    knob: Knob
    base: dict[str, object]
    shape: Shape
    evaluate: Evaluate
    currency: str

    def at(self, scale: float, multipliers: tuple[float, ...]) -> Candidate:
        """One setting."""
        low, high = knob_range(self.knob, self.shape)
        strict, eager = (low, high) if self.knob.raising == "earlier" else (high, low)
        values = [float(f"{strict + min(1.0, scale * m) * (eager - strict):.6g}") for m in multipliers]
        return self.evaluate(schedule(self.name, self.policy, {**self.base, self.knob.name: values}, self.shape))

    def reaching(self, target: float, multipliers: tuple[float, ...]) -> tuple[float, Candidate]:
        """The smallest scale, and its setting, that reaches a speed-up; the largest where none does."""
        positive = [m for m in multipliers if m > 0]
        low, high = 1e-6, 1 / min(positive, default=1.0)
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
    found: list[Candidate],
    shape: Shape,
    evaluate: Evaluate,
    currency: str,
    target: float,
) -> list[Candidate]:
    """Settings with a threshold per exit around a target: coordinate by coordinate from the best common threshold.

    Each exit's threshold in turn is made stricter or laxer while the others move so that the speed-up stays; what
    scores better is kept. The last settings are then followed over all speed-ups.

    Args:
        name: the policy's.
        policy: its class; the first knob declared `per_exit` is searched.
        found: settings with a common threshold.
        shape: the model's.
        evaluate: what a schedule gives.
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
    search = Search(name, policy, knob, base, shape, evaluate, currency)
    multipliers = (1.0,) * (shape.exits - 1)
    _, best = search.reaching(target, multipliers)
    for _ in range(PASSES):
        before = multipliers
        for exit in range(shape.exits - 1):
            for factor in FACTORS:
                value = multipliers[exit] * factor if multipliers[exit] else factor
                trial = (*multipliers[:exit], value, *multipliers[exit + 1 :])
                if not any(trial):
                    continue
                _, tried = search.reaching(target, trial)
                if tried.speedup[currency] >= target and tried.score > best.score:
                    multipliers, best = trial, tried
        if multipliers == before:
            break
    scales = np.geomspace(1e-6, 1 / min(m for m in multipliers if m > 0), ALONG)
    return sorted(
        [*found, best, *(search.at(float(scale), multipliers) for scale in scales)],
        key=lambda candidate: candidate.speedup[currency],
    )
