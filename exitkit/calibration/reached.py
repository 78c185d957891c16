"""Whether a setting reaches its target; in time, what the clock says when it is asked anew."""

from __future__ import annotations

import time
from dataclasses import replace

from exitkit.artifacts.plans import REACHED
from exitkit.calibration.study import ROUNDS, Live, Study

MOST_MORE = 8
"""Rounds that are timed on top while the interval leaves open whether the target is reached."""
STEP = 2
LONGEST = 60.0
"""Seconds after which no further rounds are timed."""


def reaches(live: Live, currency: str, target: float) -> bool | None:
    """Whether a setting reaches a target. In time its interval decides: None where the bar lies within."""
    bar = REACHED * target
    if currency != "time":
        return live.speedup[currency] >= bar
    low, high = live.time_ci
    return None if low < bar <= high else low >= bar


def timed_anew(study: Study, name: str, live: Live, target: float) -> Live:
    """A setting with a time of its own.

    It was chosen among several by what the clock said, so what the clock said then flatters. More rounds are timed
    while they leave open whether the target is reached.
    """
    settings = live.candidate.settings
    times, more, started = study.timed(name, settings, ROUNDS), 0, time.perf_counter()
    while True:
        speedup = {**live.speedup, "time": times.speedup(name, "full")}
        live = replace(live, speedup=speedup, time_ci=times.speedup_interval(name, "full"))
        decided = reaches(live, "time", target) is not None
        if decided or more >= MOST_MORE or time.perf_counter() - started >= LONGEST:
            return live
        times = study.timed(name, settings, STEP, times)
        more += STEP


def told(live: Live, currency: str) -> str:
    """The speed-up, in time with its interval."""
    speedup = f"{live.speedup[currency]:.2f}x"
    return speedup if currency != "time" else f"{speedup} (95 %: {live.time_ci[0]:.2f} to {live.time_ci[1]:.2f})"
