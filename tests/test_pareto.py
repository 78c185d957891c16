"""The search for policies that must be run: few runs, the same every time, resumed to the same, near the best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import exitkit
from exitkit.artifacts import artifact
from exitkit.artifacts.plans import pick
from exitkit.calibration import calibrate as calibrating
from exitkit.calibration import pareto, study
from exitkit.calibration.runs import Runs
from exitkit.calibration.search import Candidate, Evaluate
from exitkit.calibration.study import Study
from exitkit.data.sources import read
from exitkit.engine.schedule import Schedule, schedule
from exitkit.plugins import Plugin, installed
from exitkit.policy import Evidence, ExitPolicy, Passage, State, knob, normalised_entropy
from exitkit.testing import SHAPE

MOST = pareto.GENERATIONS * pareto.SIZE + 1


@dataclass(frozen=True)
class Words(ExitPolicy):
    """Knobs of every sort, as a policy for words has them; decides nothing."""

    rewrites: ClassVar[bool] = True
    window: int = knob(3, choices=(1, 3, 5, 7), raising="later")
    threshold: float = knob(0.2, low=0.0, high=1.0, off=-1.0)
    growth: float = knob(1.0, low=0.5, high=3.0, raising="mixed")
    pool: str = knob("max", choices=("max", "mean"))
    tries: int = knob(2, low=1, high=4, off=9, raising="later")
    free: float = knob(0.5)
    note: str = "plain"

    def decide(self, seen: Evidence, state: State) -> tuple[torch.Tensor, State]:
        return torch.zeros_like(seen.live), state


@dataclass(frozen=True)
class Two(ExitPolicy):
    """Two real knobs that work together."""

    rewrites: ClassVar[bool] = True
    skip_at: float = knob(0.5, low=0.0, high=1.0, off=2.0, raising="mixed")
    threshold: float = knob(0.1, low=0.0, high=1.0, off=-1.0)

    def decide(self, seen: Evidence, state: State) -> tuple[torch.Tensor, State]:
        return torch.zeros_like(seen.live), state


class World:
    """Scripted rows that skip layers and leave: what a setting gives, and how often somebody asked."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rows, self.layers = 500, SHAPE.layers
        self.ease = random.normal(size=self.rows)
        said = 3 * (random.normal(size=(self.layers, self.rows)) + 0.6 * self.ease - 0.5)
        self.gates = 1 / (1 + np.exp(-said))
        self.noise = 0.5 * random.normal(size=(self.layers, self.rows))
        self.asked: list[dict] = []

    def __call__(self, plan: Schedule) -> Candidate:
        self.asked.append(plan.settings)
        skip_at, threshold = plan.settings["skip_at"], plan.settings["threshold"]
        known, ran = np.zeros(self.rows), np.zeros(self.rows)
        live, right = np.ones(self.rows, dtype=bool), np.zeros(self.rows)
        for layer in range(self.layers):
            now = live & (self.gates[layer] < skip_at)
            ran += now
            known += now * (2 + 0.6 * self.ease - 0.8 * self.gates[layer])
            margin = 0.35 * known + self.noise[layer] + 0.4 * self.ease
            sure = 1 / (1 + np.exp(-1.5 * np.abs(margin)))
            entropy = -(sure * np.log2(sure) + (1 - sure) * np.log2(1 - sure))
            leave = live if layer == self.layers - 1 else now & (entropy < threshold)
            right = np.where(leave, margin > 0, right)
            live = live & ~leave
        speedup = self.layers * self.rows / max(1.0, float(ran.sum()))
        return Candidate(dict(plan.settings), {"layers": speedup}, float(right.mean()), torch.tensor(ran).long())


def space(policy: type[ExitPolicy] = Two, held: dict | None = None) -> pareto.Space:
    return pareto.space("two", policy, held or {}, SHAPE)


def settings_of(found: list[Candidate]) -> list[dict]:
    return [candidate.settings for candidate in found]


# --- what is searched ------------------------------------------------------------------------------------------------


def test_every_knob_that_can_be_turned_is_searched_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    axes = {axis.knob.name: axis for axis in space(Words).axes}
    assert set(axes) == {"window", "threshold", "growth", "pool", "tries"}
    assert "policy.two.free has no bounds to search between" in caplog.text
    assert list(axes["window"].values) == [1, 3, 5, 7]
    assert list(axes["tries"].values) == [1, 2, 3, 4]
    assert axes["pool"].values == ("max", "mean")
    assert "window" not in {axis.knob.name for axis in space(Words, {"window": 5}).axes}


def test_places_and_values_are_each_others_inverse_and_stay_in_range() -> None:
    for axis in space(Words).axes:
        places = range(len(axis.values)) if axis.values else np.linspace(0, 1, 21)
        for place in places:
            value = axis.value(float(place))
            assert axis.place(value) == pytest.approx(place, abs=1e-3)
            assert axis.values or axis.low <= value <= axis.high
    by_name = {axis.knob.name: axis for axis in space().axes}
    assert by_name["threshold"].place(-1.0) == 0.0, "off lies at the strict end"
    assert by_name["skip_at"].place(2.0) == 1.0
    assert by_name["threshold"].value(0.5) == 0.25, "finer towards the strict end"
    assert by_name["skip_at"].value(0.5) == 0.5


def test_the_ends_where_most_is_to_be_gained_are_tried_first() -> None:
    ends = {axis.knob.name: [axis.value(end) for end in axis.ends] for axis in space(Words).axes}
    assert ends == {"window": [1], "threshold": [1.0], "growth": [0.5, 3.0], "pool": [], "tries": [1]}
    world = World()
    pareto.candidates(space(), world, "layers")
    assert world.asked[0] == {"skip_at": 2.0, "threshold": -1.0}, "off"
    assert {(0.0, 0.1), (1.0, 0.1), (0.5, 1.0)} <= {tuple(asked.values()) for asked in world.asked[:4]}


def test_knobs_of_every_sort_are_searched_together() -> None:
    asked: list[dict] = []

    def evaluate(plan: Schedule) -> Candidate:
        told = plan.settings
        asked.append(told)
        speed = 1 + max(0.0, told["threshold"]) * told["growth"] / math.sqrt(told["window"])
        bonus = 0.1 if told["pool"] == "mean" else 0.0
        score = 0.9 - 0.05 * speed**2 / (1 + 0.3 * told["tries"]) + bonus
        return Candidate(told, {"layers": speed}, score, torch.tensor([len(asked)]))

    found = pareto.candidates(space(Words), evaluate, "layers")
    assert len(asked) <= MOST
    assert {told["window"] for told in asked} == {1, 3, 5, 7}
    assert {told["pool"] for told in asked} == {"max", "mean"}
    assert {told["tries"] for told in asked[1:]} == {1, 2, 3, 4}
    assert all(told["free"] == 0.5 for told in asked), "keeps its default"
    best = pick(found, "layers", 2.0)
    assert best.settings["pool"] == "mean"
    assert best.score > 0.9 - 0.05 * 4 / 2.2 + 0.1 - 0.03, "close to the best that can be had at 2x"


def test_few_values_are_all_tried_and_nothing_twice() -> None:
    world = World()
    held = {"threshold": 0.3}

    @dataclass(frozen=True)
    class Few(Two):
        skip_at: float = knob(0.5, choices=(0.25, 0.5, 0.75))

    found = pareto.candidates(pareto.space("few", Few, held, SHAPE), world, "layers")
    assert sorted(told["skip_at"] for told in world.asked) == [0.25, 0.5, 0.75]
    assert all(told["threshold"] == 0.3 for told in world.asked)
    assert len(found) == 3


def test_a_policy_without_free_knobs_is_run_once() -> None:
    world = World()
    found = pareto.candidates(space(held={"skip_at": 0.4, "threshold": 0.3}), world, "layers")
    assert settings_of(found) == world.asked == [{"skip_at": 0.4, "threshold": 0.3}]


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_runs_come_close_to_a_fine_grid(seed: int) -> None:
    world = World(seed)
    where = space()
    found = pareto.candidates(where, world, "layers")
    assert len(world.asked) <= MOST
    grid = [
        world(schedule("two", Two, {"skip_at": float(a), "threshold": float(b) ** 2}, SHAPE))
        for a in np.linspace(0, 1, 30)
        for b in np.linspace(0, 1, 30)
    ]
    for target in (1.5, 2.0, 3.0):
        world.asked.clear()
        found = pareto.nearer(where, found, world, "layers", target)
        assert len(world.asked) <= pareto.NEARER
        assert pick(found, "layers", target).score > pick(grid, "layers", target).score - 0.015


@pytest.mark.parametrize("band", [(0.45, 0.55), (0.49, 0.51), (0.62, 0.64)])
def test_gates_that_say_nearly_the_same_still_reach_their_targets(band: tuple[float, float]) -> None:
    """As gates that have hardly learned do: nearly every setting skips everything or nothing."""
    gates = np.random.default_rng(0).uniform(*band, size=(6, 400))

    def evaluate(plan: Schedule) -> Candidate:
        ran = (gates < plan.settings["skip_at"]).sum(axis=0)
        speedup = 6 * 400 / max(1.0, float(ran.sum()))
        return Candidate(dict(plan.settings), {"layers": speedup}, 0.5 + 0.05 * ran.mean(), torch.tensor(ran))

    where = space()
    found = pareto.candidates(where, evaluate, "layers")
    for target in (1.5, 2.0, 3.0):
        found = pareto.nearer(where, found, evaluate, "layers", target)
        assert pick(found, "layers", target).speedup["layers"] == pytest.approx(target, rel=0.1)


def test_a_plateau_with_all_the_life_at_one_end_is_found_out() -> None:
    asked: list[float] = []

    @dataclass(frozen=True)
    class One(ExitPolicy):
        rewrites: ClassVar[bool] = True
        threshold: float = knob(0.1, low=0.0, high=1.0, off=-1.0)

        def decide(self, seen: Evidence, state: State) -> tuple[torch.Tensor, State]:
            return torch.zeros_like(seen.live), state

    def evaluate(plan: Schedule) -> Candidate:
        threshold = plan.settings["threshold"]
        asked.append(threshold)
        speed = 1 + 3 * max(0.0, (threshold - 0.98) / 0.02)
        return Candidate(plan.settings, {"layers": speed}, 1 - 0.1 * speed, torch.tensor([int(100 * speed)]))

    where = pareto.space("one", One, {}, SHAPE)
    found = pareto.candidates(where, evaluate, "layers")
    for target in (1.5, 2.0, 3.0):
        found = pareto.nearer(where, found, evaluate, "layers", target)
        assert pick(found, "layers", target).speedup["layers"] == pytest.approx(target, rel=0.05)
    assert len(asked) <= MOST + 3 * pareto.NEARER


def test_nearer_runs_nothing_where_the_target_is_met_or_out_of_reach() -> None:
    world = World()
    where = space()
    found = pareto.candidates(where, world, "layers")
    met = pareto._unbeaten(found, "layers")[2].speedup["layers"]
    world.asked.clear()
    assert settings_of(pareto.nearer(where, found, world, "layers", met)) == settings_of(found)
    slow = [candidate for candidate in found if candidate.speedup["layers"] < 2]
    assert settings_of(pareto.nearer(where, slow, world, "layers", 50.0)) == settings_of(slow)
    assert not world.asked


# --- the same again --------------------------------------------------------------------------------------------------


def test_the_search_is_deterministic_and_another_seed_asks_otherwise() -> None:
    def asked(seed: int) -> list[dict]:
        world = World()
        pareto.candidates(space(), world, "layers", seed)
        return world.asked

    assert asked(0) == asked(0)
    assert asked(0) != asked(1)


class Killed(BaseException):
    """Nothing catches this."""


def dying(world: Evaluate, after: int) -> Callable[[Schedule], Candidate]:
    left = [after]

    def evaluate(plan: Schedule) -> Candidate:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return world(plan)

    return evaluate


@pytest.mark.parametrize("after", [0, 1, 7, 20, 33, 47])
def test_an_interrupted_search_goes_on_to_the_same_end_and_repeats_no_run(after: int, tmp_path: Path) -> None:
    about = {"rows": "abc"}
    whole = World()
    expected = pareto.candidates(space(), Runs(whole, about), "layers")
    first, second = World(), World()
    with pytest.raises(Killed):
        pareto.candidates(space(), Runs(dying(first, after), about, tmp_path / "runs.jsonl"), "layers")
    found = pareto.candidates(space(), Runs(second, about, tmp_path / "runs.jsonl"), "layers")
    assert first.asked + second.asked == whole.asked
    assert len(first.asked) == after
    assert settings_of(found) == settings_of(expected)
    assert [one.score for one in found] == [one.score for one in expected]
    assert all(torch.equal(one.taken, other.taken) for one, other in zip(found, expected, strict=True))


def test_runs_about_something_else_are_not_taken_and_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    plans = [schedule("two", Two, {"skip_at": value}, SHAPE) for value in (0.2, 0.4)]
    world = World()
    for plan in plans:
        Runs(world, {"rows": "abc"}, file)(plan)
    assert len(world.asked) == 2
    text = file.read_text()
    file.write_text(text[:-20])
    again = Runs(world, {"rows": "abc"}, file)
    for plan in plans:
        again(plan)
    assert len(world.asked) == 3
    assert file.read_text() == text, "the file is whole again"
    Runs(world, {"rows": "other"}, file)(plans[0])
    assert len(world.asked) == 4
    assert len(file.read_text().splitlines()) == 2


# --- through calibrate -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skips(ExitPolicy):
    """Skips the second layer where the states' mean is above a threshold; exits by entropy."""

    rewrites: ClassVar[bool] = True
    skip_at: float = knob(0.0, low=-0.5, high=0.5, off=9.0, raising="mixed")
    threshold: float = knob(0.1, low=0.0, high=1.0, off=-1.0)

    def gate(self, before: Passage, state: State) -> torch.Tensor:
        first = before.hidden[before.bounds[:-1]].float().mean(dim=-1)
        return (first < self.skip_at) | (torch.tensor(before.layer != 2))

    def decide(self, seen: Evidence, state: State) -> tuple[torch.Tensor, State]:
        return normalised_entropy(seen.logits) < self.threshold, state


def test_an_interrupted_calibrate_goes_on_to_the_same_settings(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = installed()
    registry.add("policy", "skips", Skips, Plugin("test", "test", "test", "0"))
    monkeypatch.setattr(calibrating, "installed", lambda: registry)
    given = {"target_speedup": 1.5, "currency": "layers", "policy": "skips"}
    rows = {"data": "demo:reviews", "split": "validation[:48]"}
    ran: list[dict] = []
    right = Study._run
    dies_at = [12]

    def counted(self, plan, timed):
        assert not timed, "gates make predicted times wrong"
        if len(ran) == dies_at[0]:
            raise Killed
        ran.append(plan.settings)
        return right(self, plan, timed)

    monkeypatch.setattr(Study, "_run", counted)
    with pytest.raises(Killed):
        exitkit.calibrate(artifact, **given, **rows)
    kept = study.runs_file(artifact, "skips")
    assert len(kept.read_text().splitlines()) == 13
    assert json.loads(kept.read_text().splitlines()[0])["policy"] == "skips"
    assert exitkit.load(artifact) is not None, "the folder is whole meanwhile"
    dies_at[0] = -1
    resumed = exitkit.calibrate(artifact, **given, **rows)
    assert len(ran) == len({json.dumps(one, sort_keys=True) for one in ran}), "no setting was run twice"
    assert not kept.exists()
    before = list(ran)
    ran.clear()
    whole = exitkit.calibrate(artifact, **given, **rows)
    assert ran == before
    same = ("settings", "score", "predicted_speedup", "exit_histogram", "better")
    assert {key: whole[key] for key in same} == {key: resumed[key] for key in same}


def test_targets_one_after_the_other_share_their_runs(trained: Path) -> None:
    registry = installed()
    registry.add("policy", "skips", Skips, Plugin("test", "test", "test", "0"))
    made = Study(artifact.read(trained, registry), registry, read("demo:reviews", "validation[:48]"), "accuracy", 48)
    first = made.candidates("skips", {}, "layers")
    known = len(made.evaluator("skips").known)
    assert known <= MOST
    again = made.candidates("skips", {}, "layers")
    assert len(made.evaluator("skips").known) == known
    assert settings_of(again) == settings_of(first)
    both = [candidate.taken for candidate in first]
    assert all(taken.shape == (2, 48) for taken in both), "exits and layers: skipping tells settings apart too"
