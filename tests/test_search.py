"""Which setting is picked, and that predictions count like runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from exitkit.artifacts import artifact
from exitkit.artifacts.plans import pick
from exitkit.calibration.confirming import confirm
from exitkit.calibration.layer_time import LayerTimes, Line, PredictedTime, embedded
from exitkit.calibration.search import Candidate, better, candidates, fastest_within, frontier, settle
from exitkit.calibration.study import Study
from exitkit.data.sources import read
from exitkit.engine.cost import ReplayCost, prices, speedups
from exitkit.engine.loop import run
from exitkit.engine.replay import Outcome, record, replay
from exitkit.engine.schedule import Schedule, schedule
from exitkit.errors import UsageError
from exitkit.measuring.runs import Sample
from exitkit.plugins import Plugin, installed
from exitkit.policy import Evidence, ExitPolicy, Passage, Shape, State, knob, normalised_entropy
from exitkit.prediction.predictor import Predictor
from exitkit.testing import SHAPE, recording, scripted, tiny_batch, tiny_model

REGISTRY = installed()


def point(speedup: float, score: float) -> Candidate:
    return Candidate({"threshold": speedup}, {"layers": speedup}, score, torch.tensor([int(100 * speedup)]))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1.97, 0.80), (2.05, 0.85), (2.2, 0.99)], 2.05),  # the best score within [0.98, 1.05] × 2
        ([(1.97, 0.85), (2.05, 0.85)], 1.97),  # ties: the slower
        ([(1.5, 0.9), (2.3, 0.7), (2.9, 0.8)], 2.3),  # none within: the slowest above
        ([(1.1, 0.9), (1.5, 0.8)], 1.5),  # none above: the fastest
        ([(1.95, 0.99), (2.11, 0.5)], 2.11),  # just outside on either side
    ],
)
def test_which_setting_is_picked(points: list[tuple[float, float]], expected: float) -> None:
    assert pick([point(*p) for p in points], "layers", 2.0).speedup["layers"] == expected


def test_a_faster_setting_with_at_least_the_score_is_better_and_the_chosen_never_is() -> None:
    points = [point(2.0, 0.8), point(2.5, 0.8), point(3.0, 0.79)]
    assert better(points, points[0], "layers") is points[1]
    assert better(points, points[1], "layers") is None
    assert better(points[:1], point(1.0, 0.8), "layers") is points[0]


def test_fastest_within_a_permitted_loss() -> None:
    points = [point(1.0, 0.9), point(2.0, 0.89), point(3.0, 0.85)]
    assert fastest_within(points, "layers", 0.9, 0.01) is points[1]
    assert fastest_within(points[2:], "layers", 0.9, 0.01) is None


def scripted_search() -> tuple[list[Candidate], object]:
    answers = recording(scripted(300))
    truth = answers.logits[-1].argmax(-1)

    def evaluate(plan: Schedule) -> Candidate:
        outcome = replay(answers, plan)
        layers = SHAPE.layers * answers.units / float(outcome.exit.sum())
        score = float((outcome.logits.argmax(-1) == truth).float().mean())
        return Candidate(plan.settings, {"layers": layers}, score, outcome.exit)

    return candidates("entropy", REGISTRY.policy("entropy"), {}, SHAPE, evaluate, "layers"), evaluate


def test_the_search_leaves_no_wide_gap_between_neighbours() -> None:
    found, _ = scripted_search()
    speeds = np.array([c.speedup["layers"] for c in found])
    assert speeds[0] == 1.0
    assert (speeds[1:] / speeds[:-1]).max() < 1.02
    assert all(pick(found, "layers", t).speedup["layers"] == pytest.approx(t, rel=0.05) for t in (1.5, 2.0, 3.0))


def test_the_frontier_goes_up_in_speed_and_covers_the_range() -> None:
    found, _ = scripted_search()
    speeds = [c.speedup["layers"] for c in frontier(found, "layers")]
    assert speeds == sorted(speeds)
    assert speeds[-1] == max(c.speedup["layers"] for c in found)
    assert len(speeds) <= 80


def test_a_settled_threshold_lies_midway_between_observed_values() -> None:
    found, evaluate = scripted_search()
    chosen = pick(found, "layers", 2.0)
    settled = settle(chosen, "entropy", REGISTRY.policy("entropy"), SHAPE, evaluate)
    threshold = settled.settings["threshold"]
    observed = normalised_entropy(scripted(300)[:-1]).flatten()
    compared = observed[(torch.arange(1, 6)[:, None] <= chosen.taken).flatten()]  # exits that were asked
    below, above = compared[compared < threshold].max(), compared[compared >= threshold].min()
    assert threshold == pytest.approx(float(below + above) / 2, abs=1e-5)
    assert torch.equal(
        evaluate(schedule("entropy", REGISTRY.policy("entropy"), settled.settings, SHAPE)).taken, chosen.taken
    )


REPLAYED = [
    name
    for name in REGISTRY.names("policy")
    if not (REGISTRY.policy(name).rewrites or REGISTRY.policy(name).refuses(SHAPE))
]


@pytest.mark.parametrize("name", REPLAYED)
def test_replayed_work_is_the_work_of_a_run(name: str) -> None:
    model, rows = tiny_model(), tiny_batch()
    policy = REGISTRY.policy(name)
    probe = policy.probe(model.shape)
    if probe is not None:
        model.probes[name] = probe.eval()
    recorded = record(model, [rows], model.probes)
    eager = {"fixed": {"exit": 3}, "confidence": {"threshold": 0.75}, "entropy": {"threshold": 0.6}}
    plan = schedule(name, policy, eager.get(name, {}), model.shape)
    price = prices(model)
    cost = ReplayCost(recorded, price, plan)
    assert cost.speedups(replay(recorded, plan)) == pytest.approx(speedups(run(model, rows, plan), price), rel=1e-9)


def test_predicted_time_adds_up_the_parts_of_every_batch() -> None:
    def line(fixed: float, per_token: float) -> Line:
        return Line(np.array([1.0, 4.0]), np.array([fixed, fixed]), np.array([per_token, per_token]))

    times = LayerTimes(embed=line(1, 0), layer=line(2, 0.1), exit=line(0.5, 0), last=line(0.25, 0))
    answers = recording(scripted(8))
    clock = PredictedTime(answers, [times], batch_size=4)
    plan = schedule("entropy", REGISTRY.policy("entropy"), {}, answers.shape)
    assert clock.full == pytest.approx(2 * (1 + 6 * (2 + 4) + 0.25))  # two batches of four sequences of ten tokens
    nobody = Outcome(answers.logits[-1], torch.full((8,), 6))
    assert clock.seconds(nobody, plan) == pytest.approx(clock.full + 2 * 5 * 0.5)
    at_once = Outcome(answers.logits[0], torch.full((8,), 1))
    assert clock.seconds(at_once, plan) == pytest.approx(2 * (1 + 6 + 0.5))
    only_two = {"threshold": ["off", 0.3, "off", "off", "off"]}
    at_two = schedule("entropy", REGISTRY.policy("entropy"), only_two, answers.shape)
    assert clock.seconds(nobody, at_two) == pytest.approx(clock.full + 2 * 0.5)


@dataclass(frozen=True)
class SkipsSome(ExitPolicy):
    """Skips the second layer for sequences of even length; exits by entropy."""

    rewrites: ClassVar[bool] = True
    threshold: float = knob(0.1, low=0.0, high=1.0, off=-1.0)

    def gate(self, before: Passage, state: State) -> torch.Tensor:
        return (before.bounds.diff() % 2 == 1) | (before.layer != 2)

    def decide(self, seen: Evidence, state: State) -> tuple[torch.Tensor, State]:
        return normalised_entropy(seen.logits) < self.threshold, state


def test_a_policy_that_rewrites_later_states_is_calibrated_by_running_it(trained: Path) -> None:
    registry = installed()
    registry.add("policy", "skips", SkipsSome, Plugin("test", "test", "test", "0"))
    model = artifact.read(trained, registry)
    study = Study(model, registry, read("demo:reviews", "validation[:96]"), "accuracy", 32)
    found = study.candidates("skips", {}, "layers")
    live, _ = confirm(study, "skips", {}, found, "layers", 1.5)
    assert live.speedup["layers"] == pytest.approx(live.candidate.speedup["layers"])
    assert live.speedup["layers"] >= 1.45
    assert int(live.trace.layers.max()) == 4
    assert bool((live.trace.layers < live.trace.exit).any()), "somebody skipped a layer below its exit"
    answers = Predictor(model, registry).predict(["a good film"], policy="skips")
    assert answers[0].keys() == {"label", "score", "exit", "layers"}


@dataclass(frozen=True)
class Probed(ExitPolicy):
    """Leaves when its own probe says so."""

    reads: ClassVar[frozenset[str]] = frozenset({"logits", "probe"})
    threshold: float = knob(0.5, low=0.0, high=1.0, off=-1.0)

    @classmethod
    def probe(cls, shape: Shape) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(shape.width, 1), torch.nn.Sigmoid())

    def decide(self, seen: Evidence, state: State) -> tuple[torch.Tensor, State]:
        assert seen.probe is not None
        return seen.probe[:, 0] < self.threshold, state


def test_a_policys_probe_is_saved_with_the_model_and_decides(trained: Path, tmp_path: Path) -> None:
    registry = installed()
    registry.add("policy", "probed", Probed, Plugin("test", "test", "test", "0"))
    model = artifact.read(trained, registry)
    model.model.probes["probed"] = Probed.probe(model.model.shape)
    rows = Sample.of(read("demo:reviews", "validation[:40]"), model).batches(40)[0]
    with torch.no_grad():  # half of the rows leave at the first exit
        stream = embedded(model.model, rows)
        features, _ = model.model.read(1, stream.carrying(model.model.encoder.layer(0, stream)))
        linear = model.model.probes["probed"][0]
        linear.bias.sub_(linear(features).median())
    artifact.write(tmp_path, model.model, model.tokenizer, model.card)
    again = artifact.read(tmp_path, registry)
    plan = schedule("probed", Probed, {}, again.model.shape)
    before, after = run(model.model.eval(), rows, plan), run(again.model, rows, plan)
    assert torch.equal(before.exit, after.exit)
    assert 15 <= int((after.exit == 1).sum()) <= 25
    with pytest.raises(UsageError, match="unknown policy 'probed'"):
        artifact.read(tmp_path, installed())
