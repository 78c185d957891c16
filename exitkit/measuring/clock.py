"""Time, measured so that what a shared machine does in the meantime hits all contenders alike.

Contenders answer the same batches in turn, round by round; only ratios of such interleaved runs are compared. A batch's
time is the median over the rounds. A turn is a batch or, where batches are small, some of them: a program that answers
single texts runs one model all the time, and finds its weights where the text before has left them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from exitkit.progress import Advance

Runner = Callable[[Any], object]
"""Answers one of the batches that `interleaved` is given."""
WARM_UPS = 2
TURN_ROWS = 32
"""Rows that a contender answers before the next has its turn."""
FEWEST_TURNS = 16
"""Turns of a contender in a round, if there are so many batches."""


@dataclass(frozen=True)
class Times:
    """Seconds of every contender for every batch in every round."""

    seconds: Mapping[str, npt.NDArray[np.float64]]  # [rounds, batches]
    turn: int = 1  # batches that were answered one after the other, by the same contender

    def per_batch(self, name: str) -> npt.NDArray[np.float64]:
        """[batches] median over the rounds."""
        return np.median(self.seconds[name], axis=0)

    def joined(self, more: Times) -> Times:
        """These and further rounds of the same contenders over the same batches."""
        both = {name: np.concatenate([seconds, more.seconds[name]]) for name, seconds in self.seconds.items()}
        return Times(both, self.turn)

    def speedup(self, name: str, reference: str) -> float:
        """How many times faster a contender is than another: a ratio of sums over all batches."""
        return float(self.per_batch(reference).sum() / self.per_batch(name).sum())

    def speedup_interval(self, name: str, reference: str, resamples: int = 1000) -> tuple[float, float]:
        """95 % bootstrap interval of `speedup`, over turns and, within each, over rounds."""
        random = np.random.default_rng(0)
        mine, theirs = self.seconds[name], self.seconds[reference]
        rounds, batches = mine.shape
        starts = np.arange(0, batches, self.turn)
        ratios = []
        for _ in range(resamples):
            start = random.choice(starts, len(starts))
            batch = np.concatenate([np.arange(first, min(first + self.turn, batches)) for first in start])
            round_ = random.integers(0, rounds, (rounds, len(batch)))
            picked = np.median(theirs[round_, batch], axis=0).sum() / np.median(mine[round_, batch], axis=0).sum()
            ratios.append(picked)
        low, high = np.percentile(ratios, [2.5, 97.5])
        return float(low), float(high)


def turn_of(batch_size: int, batches: int) -> int:
    """How many of so many batches of this size make a turn."""
    return max(1, min(TURN_ROWS // batch_size, batches // FEWEST_TURNS))


def interleaved(
    runners: Mapping[str, Runner],
    batches: Sequence[Any],
    rounds: int,
    device: torch.device,
    advance: Advance = lambda steps=1, note="": None,
    turn: int = 1,
    seed: int = 0,
) -> Times:
    """Time every runner on every batch, `rounds` times, taking turns of `turn` batches.

    The order of the runners is drawn anew for every turn, so that none of them always comes first, or always after the
    same other: how fast a batch is answered depends also on what the one before has left in the caches.
    """
    names, random = list(runners), np.random.default_rng(seed)
    seconds = {name: np.zeros((rounds, len(batches))) for name in names}
    for name in names:
        for batch in batches[:WARM_UPS]:
            runners[name](batch)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(rounds):
            for first in range(0, len(batches), turn):
                those = range(first, min(first + turn, len(batches)))
                for name in random.permutation(names).tolist():
                    for number in those:
                        work = partial(runners[name], batches[number])
                        seconds[name][round_, number] = seconds_of(work, device)
                advance(len(those))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return Times(seconds, turn)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, queued work on an accelerator included."""
    _settle(device)
    started = time.perf_counter()
    work()
    _settle(device)
    return time.perf_counter() - started


def _settle(device: torch.device) -> None:
    """Wait for work that was queued on an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
