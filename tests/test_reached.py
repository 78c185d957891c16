"""A setting counts as reaching its target in time only where a timing of its own says so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from exitkit.calibration.calibrate import _warn_of_fixed_depth
from exitkit.calibration.confirming import confirm
from exitkit.calibration.reached import MOST_MORE, REACHED, reaches, timed_anew
from exitkit.calibration.search import Candidate
from exitkit.calibration.study import ROUNDS, Live
from exitkit.measuring.clock import Times

TARGET = 2.0


@dataclass(frozen=True)
class Clocked:
    """What rounds said, each with its own error; the interval is that of their mean at its nominal level."""

    rounds: tuple[float, ...]
    noise: float  # standard deviation of a round, as a share

    def speedup(self, name: str, reference: str) -> float:
        return float(np.mean(self.rounds))

    def speedup_interval(self, name: str, reference: str) -> tuple[float, float]:
        half = 1.96 * self.noise * self.speedup(name, reference) / np.sqrt(len(self.rounds))
        return self.speedup(name, reference) - half, self.speedup(name, reference) + half


class Stub:
    """A study of settings whose true speed-ups are known, with a noisy clock and predictions that are somewhat off."""

    def __init__(self, seed: int, noise: float, truths: list[float]) -> None:
        self.random, self.noise, self.asked = np.random.default_rng(seed), noise * np.sqrt(ROUNDS), 0
        self.truths = truths

    def found(self) -> list[Candidate]:
        off = self.random.normal(1, 0.05)
        return [
            Candidate({"n": n}, {"time": truth * off * self.random.normal(1, 0.01)}, 1 - truth / 10, torch.tensor([n]))
            for n, truth in enumerate(self.truths)
        ]

    def nearer(self, name: str, held: Any, found: Any, currency: str, target: float) -> Any:
        return list(found)

    def settled(self, chosen: Candidate, name: str) -> Candidate:
        return chosen

    def live(self, name: str, candidate: Candidate, rounds: int = ROUNDS) -> Live:
        times = self.timed(name, candidate.settings, rounds)
        said: Any = SimpleNamespace()
        return Live(candidate, said, {"time": times.speedup(name, "full")}, times.speedup_interval(name, "full"), said)

    def timed(self, name: str, settings: Any, rounds: int = ROUNDS, before: Clocked | None = None) -> Clocked:
        self.asked += rounds
        truth = self.truths[settings["n"]]
        new = tuple(truth * max(0.1, self.random.normal(1, self.noise)) for _ in range(rounds))
        return Clocked((before.rounds if before else ()) + new, self.noise)


def confirmed(seed: int, noise: float, truths: list[float]) -> tuple[Live, float, Stub]:
    stub: Any = Stub(seed, noise, truths)
    live, _ = confirm(stub, "entropy", {}, stub.found(), "time", TARGET)
    return live, truths[live.candidate.settings["n"]], stub


MANY = np.linspace(1.2, 3.0, 60).tolist()


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.07, 0.12])
def test_few_settings_that_are_called_reaching_do_not_reach(noise: float) -> None:
    """The noise is that of the ratio of two times after the usual rounds."""
    reaching = [
        truth
        for live, truth, _ in (confirmed(seed, noise, MANY) for seed in range(120))
        if reaches(live, "time", TARGET)
    ]
    below = sum(truth < REACHED * TARGET for truth in reaching)
    assert below <= 0.06 * len(reaching)
    assert sum(truth < 0.9 * TARGET for truth in reaching) <= 0.01 * len(reaching)


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.07])
def test_a_setting_that_is_truly_fast_mostly_counts(noise: float) -> None:
    fast = [TARGET * (1.02 + 2.5 * noise)]
    verdicts = [reaches(confirmed(seed, noise, fast)[0], "time", TARGET) for seed in range(100)]
    assert verdicts.count(True) >= 0.9 * len(verdicts)
    assert verdicts.count(False) <= 0.02 * len(verdicts)


def test_a_clear_case_takes_no_more_rounds_and_an_open_one_at_most_eight() -> None:
    _, _, stub = confirmed(0, 0.0, [TARGET])
    assert stub.asked <= 2 + ROUNDS
    stub = Stub(0, 0.07, [REACHED * TARGET])
    study: Any = stub
    live = stub.live("entropy", stub.found()[0])
    stub.asked = 0
    found = timed_anew(study, "entropy", replace(live, speedup={"time": 9.0}), TARGET)
    assert stub.asked <= ROUNDS + MOST_MORE
    assert found.speedup["time"] < 3, "what the clock said before does not count"


def test_after_a_minute_no_further_rounds_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = iter(range(0, 1000, 61))
    monkeypatch.setattr("exitkit.calibration.reached.time.perf_counter", lambda: next(passed))
    stub = Stub(0, 0.3, [REACHED * TARGET])
    study: Any = stub
    live = stub.live("entropy", stub.found()[0])
    stub.asked = 0
    assert reaches(timed_anew(study, "entropy", live, TARGET), "time", TARGET) is None
    assert stub.asked == ROUNDS


def test_the_interval_decides_in_time_and_the_figure_elsewhere() -> None:
    live: Any = SimpleNamespace(speedup={"time": 2.0, "layers": 1.95}, time_ci=(1.9, 2.1))
    assert reaches(live, "time", TARGET) is None
    live.time_ci = (1.94, 2.1)
    assert reaches(live, "time", TARGET) is True
    live.time_ci = (1.8, 1.93)
    assert reaches(live, "time", TARGET) is False
    assert reaches(live, "layers", TARGET) is True


def test_further_rounds_are_added_to_those_before() -> None:
    first = Times({"a": np.ones((3, 4)), "full": 2 * np.ones((3, 4))}, turn=2)
    more = Times({"a": np.ones((2, 4)), "full": 3 * np.ones((2, 4))}, turn=2)
    both = first.joined(more)
    assert (both.seconds["full"].shape, both.turn) == ((5, 4), 2)
    assert both.speedup("a", "full") == 2.0, "the median of five rounds"


@pytest.mark.parametrize(
    ("name", "histogram", "told"),
    [
        ("patience", [0, 0, 70, 0, 0, 0], True),
        ("patience", [0, 1, 199, 0], True),
        ("patience", [0, 60, 10, 0], False),
        ("patience", [0, 0, 0, 70], False),  # nobody leaves early
        ("fixed", [0, 70, 0], False),
    ],
)
def test_a_setting_that_is_a_fixed_depth_is_called_one(
    name: str, histogram: list[int], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_fixed_depth(name, histogram)
    assert ("this setting is a fixed depth" in caplog.text) == told
