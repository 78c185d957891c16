"""A setting is picked by what it is predicted to give, and confirmed by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from exitkit.artifacts.plans import REACHED, pick
from exitkit.calibration.reached import timed_anew
from exitkit.calibration.search import Candidate
from exitkit.calibration.study import Live, Study

MOST_LIVE_RUNS = 3
GLANCE = 2
"""Rounds that a setting is timed in while one is looked for; the one chosen is timed anew."""


def confirm(
    study: Study, name: str, held: Mapping[str, Any], found: Sequence[Candidate], currency: str, target: float
) -> tuple[Live, list[Candidate]]:
    """Pick a setting for a target and run it; in time, correct the prediction by what the clock said and pick again.

    Returns:
        The best setting, which in time is timed anew once it is chosen, and the candidates with corrected times.
    """
    tried: list[Live] = []
    pace = 1.0  # what the clock says ÷ what was predicted
    for _ in range(MOST_LIVE_RUNS if currency == "time" else 1):
        found = study.nearer(name, held, found, currency, target / pace)
        again = pick(paced(found, pace), currency, target)
        if tried and torch.equal(again.taken, tried[-1].candidate.taken):
            break
        chosen = study.settled(again, name)
        live = study.live(name, chosen, GLANCE) if currency == "time" else study.live(name, chosen)
        tried.append(live)
        reached = live.speedup[currency] / target
        if REACHED <= reached <= 2 - REACHED or currency != "time":
            break
        pace *= live.speedup["time"] / chosen.speedup["time"]
    reaching = [live for live in tried if live.speedup[currency] >= REACHED * target]
    if reaching:
        best = min(reaching, key=lambda live: live.speedup[currency])
    else:
        best = max(tried, key=lambda live: live.speedup[currency])
    if currency == "time":
        best = timed_anew(study, name, best, target)
    return best, paced(found, pace)


def paced(found: Sequence[Candidate], pace: float) -> list[Candidate]:
    """Candidates whose predicted speed-ups in time are multiplied by `pace`."""
    return [replace(c, speedup={**c.speedup, "time": c.speedup["time"] * pace}) for c in found]
