"""Rules around a policy, temperatures, and thresholds exit by exit: the same live, replayed and stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import exitkit
from exitkit.artifacts.artifact import read as read_artifact
from exitkit.calibration import per_exit, search, temperature
from exitkit.calibration.search import Candidate
from exitkit.calibration.study import Study
from exitkit.data.sources import read
from exitkit.engine.cost import ReplayCost, prices, speedups
from exitkit.engine.limits import NONE, Limits
from exitkit.engine.loop import run
from exitkit.engine.replay import Recording, record, replay
from exitkit.engine.schedule import Schedule, schedule
from exitkit.errors import UsageError
from exitkit.plugins import installed
from exitkit.policy import Decision, Evidence, ExitPolicy, State, knob, normalised_entropy
from exitkit.tasks import Classification, MultiLabel, Regression
from exitkit.testing import SHAPE, evidence, recording, scripted, tiny_batch, tiny_model

REGISTRY = installed()
TEMPERATURES = (1.5, 2.0, 0.5, 3.0, 1.0, 2.0)


def plan(name: str = "entropy", limits: Limits = NONE, **knobs: object) -> Schedule:
    return schedule(name, REGISTRY.policy(name), knobs, SHAPE, limits)


def test_nobody_leaves_before_the_first_exit_allowed() -> None:
    taken = replay(recording(scripted(100)), plan(threshold=1.0, limits=Limits(min_exit=3))).exit
    assert taken.min() == 3


def test_a_policy_with_memory_still_sees_the_exits_before() -> None:
    logits = torch.zeros(6, 1, 3)
    logits[:, 0, 1] = 5.0
    assert replay(recording(logits), plan("patience", Limits(min_exit=3), patience=2)).exit.tolist() == [3]
    assert plan("patience", Limits(min_exit=3)).asked == (True,) * 5
    assert plan("entropy", Limits(min_exit=3)).asked == (False, False, True, True, True)


def test_a_label_that_must_not_leave_early_is_answered_by_the_last_exit_only() -> None:
    outcome = replay(recording(scripted(300)), plan(threshold=0.7, limits=Limits(never_early=(1,))))
    early = outcome.exit < 6
    assert early.any()
    assert not (outcome.logits[early].argmax(dim=1) == 1).any()
    free = replay(recording(scripted(300)), plan(threshold=0.7))
    same = free.logits.argmax(dim=1) != 1
    assert torch.equal(outcome.exit[same & (free.exit == 1)], free.exit[same & (free.exit == 1)])


def test_in_multi_label_one_kept_label_keeps_the_row() -> None:
    seen = evidence(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), task="multi-label")
    held = Limits(never_early=(0,)).hold(seen, Decision(torch.tensor([True, True])))
    assert held.leave.tolist() == [False, True]


def test_a_policys_own_answer_counts_for_labels_kept_back() -> None:
    seen = evidence(torch.tensor([[1.0, 0.0]]))
    own = Decision(torch.tensor([True]), answer=torch.tensor([[0.0, 1.0]]))
    assert Limits(never_early=(0,)).hold(seen, own).leave.tolist() == [True]
    assert Limits(never_early=(1,)).hold(seen, own).leave.tolist() == [False]


def test_at_the_deadline_everybody_is_answered_with_what_that_exit_says() -> None:
    logits = scripted(50)
    outcome = replay(recording(logits), plan(threshold=-1.0, limits=Limits(max_exit=4)))
    assert (outcome.exit == 4).all()
    assert torch.equal(outcome.logits, logits[3])


LIMITS = st.builds(
    Limits,
    min_exit=st.integers(1, 6),
    max_exit=st.none() | st.integers(1, 6),
    never_early=st.sets(st.integers(0, 2), max_size=2).map(lambda found: tuple(sorted(found))),
    temperatures=st.none() | st.just(TEMPERATURES),
)


@settings(max_examples=25, deadline=None)
@given(
    limits=LIMITS,
    name=st.sampled_from(["entropy", "patience", "confidence", "learned"]),
    turned_off=st.sets(st.integers(1, 5)),
)
def test_live_and_replayed_limits_agree_and_cost_the_same(limits: Limits, name: str, turned_off: set[int]) -> None:
    model, batch = tiny_model(), tiny_batch()
    if name == "learned":
        torch.manual_seed(0)
        model.probes[name] = REGISTRY.policy(name).probe(model.shape).eval()  # type: ignore[union-attr]
    recorded = record(model, [batch], model.probes)
    levels = ["off" if exit in turned_off else 0.6 for exit in range(1, 6)]
    knobs = {} if name == "patience" else {"threshold": levels}
    chosen = schedule(name, REGISTRY.policy(name), knobs, model.shape, limits)
    live, guessed = run(model, batch, chosen), replay(recorded, chosen)
    assert torch.equal(live.exit, guessed.exit)
    assert torch.allclose(live.logits, guessed.logits, atol=1e-4)
    price = prices(model)
    assert ReplayCost(recorded, price, chosen).speedups(guessed) == pytest.approx(speedups(live, price))
    again = Limits.from_dict(yaml.safe_load(yaml.safe_dump(limits.as_dict("abc"))), "abc")
    assert again == limits


def test_an_exit_that_a_list_turns_off_costs_nothing_and_changes_nothing_else() -> None:
    model, batch = tiny_model(), tiny_batch()
    some = run(model, batch, plan(threshold=["off", 0.6, "off", 0.6, 0.6]))
    alone = run(model, batch, plan(threshold=[0.0, 0.6, 0.0, 0.6, 0.6]))
    assert torch.equal(some.exit, alone.exit)
    assert torch.equal(some.logits, alone.logits)
    assert [count > 0 for count in some.work.heads] == [False, True, False, True, True, True]
    assert all(alone.work.heads)


@dataclass(frozen=True)
class Either(ExitPolicy):
    """Leave when either of two rules says so."""

    threshold: float = knob(0.3, low=0.0, high=1.0, off=-1.0, per_exit=True)
    gap: float = knob(2.0, low=0.0, high=1.0, off=2.0, raising="later", per_exit=True)

    def decide(self, seen: Evidence, state: State) -> tuple[torch.Tensor, State]:
        first, second = seen.logits.softmax(-1).topk(2).values.unbind(-1)
        return (normalised_entropy(seen.logits) < self.threshold) | (first - second > self.gap), state


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, [True] * 5),
        ({"threshold": "off", "gap": 0.5}, [True] * 5),
        ({"threshold": ["off", 0.3, "off", 0.3, "off"]}, [False, True, False, True, False]),
        (
            {"threshold": ["off", 0.3, "off", 0.3, "off"], "gap": [0.5, 2.0, 2.0, 2.0, 2.0]},
            [True, True, False, True, False],
        ),
        ({"threshold": "off", "gap": "off"}, [True] * 5),
    ],
)
def test_an_exit_is_off_only_where_all_that_may_differ_is_off(settings: dict, asked: list[bool]) -> None:
    assert list(schedule("either", Either, settings, SHAPE).asked) == asked


def test_a_policy_that_is_off_everywhere_still_runs_its_heads_to_show_their_price() -> None:
    assert all(run(tiny_model(), tiny_batch(), plan(threshold="off")).work.heads)


def test_heads_below_the_first_exit_allowed_are_not_run() -> None:
    trace = run(tiny_model(), tiny_batch(), plan(threshold=0.5, limits=Limits(min_exit=3)))
    assert trace.work.heads[:2] == (0, 0)
    assert trace.work.heads[2] == 24


@pytest.mark.parametrize(
    ("name", "limits", "words"),
    [
        ("entropy", Limits(min_exit=7), "--min-exit 7: this model has exits 1 to 6"),
        ("entropy", Limits(max_exit=0), "--max-exit 0"),
        ("fixed", Limits(never_early=(0,)), "does not look at answers"),
        ("entropy", Limits(temperatures=(1.0,)), "1 temperatures for 6 exits"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(name: str, limits: Limits, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan(name, limits)


# --- temperatures


def test_a_temperature_undoes_the_scale_of_logits() -> None:
    random = torch.Generator().manual_seed(0)
    fair = 2 * torch.randn(4000, 3, generator=random)
    truth = torch.multinomial(fair.softmax(dim=1), 1, generator=random).squeeze(1).numpy()
    found = temperature.fit(torch.stack([3 * fair, fair, fair / 2]), truth, Classification(("a", "b", "c")))
    assert found.values == pytest.approx((3.0, 1.0, 0.5), rel=0.08)
    assert found.nll[0][1] < found.nll[0][0] - 0.1
    assert found.ece[0][1] < 0.03 < found.ece[0][0]
    signs = torch.bernoulli(fair.sigmoid(), generator=random).numpy()
    assert temperature.fit(2 * fair[None], signs, MultiLabel(("a", "b", "c"))).values == pytest.approx((2.0,), rel=0.08)


def test_calibration_error_by_hand() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]]).log()
    labels = torch.tensor([0, 1, 1])
    by_hand = (2 * abs(0.9 - 0.5) + abs(0.7 - 1.0)) / 3
    assert temperature.calibration_error(logits, labels, Classification(("a", "b"))) == pytest.approx(by_hand)


def test_temperatures_need_labels_and_probabilities() -> None:
    with pytest.raises(UsageError, match="needs labelled"):
        temperature.fit(scripted(10), None, Classification(("a", "b", "c")))
    with pytest.raises(UsageError, match="regression has no probabilities"):
        temperature.fit(scripted(10), np.zeros(10), Regression())


# --- thresholds exit by exit


def _misled(units: int = 400) -> torch.Tensor:
    """Exit 1 is sure of itself and often wrong; exits 2 and 3 are modest and right."""
    random = torch.Generator().manual_seed(0)
    logits = torch.zeros(4, units, 2)
    logits[1:, :, 1] = torch.tensor([2.0, 2.5, 9.0])[:, None] + torch.rand(3, units, generator=random)
    wrong = torch.rand(units, generator=random) < 0.5
    logits[0, :, 0] = torch.where(wrong, 3.0, -3.0) + torch.rand(units, generator=random)
    return logits


def _judge(recorded: Recording, right: int = 1) -> search.Evaluate:
    """Replays score how often they give the class `right`."""

    def evaluate(tried: Schedule) -> Candidate:
        outcome = replay(recorded, tried)
        score = float((outcome.logits.argmax(dim=1) == right).float().mean())
        return Candidate(tried.settings, {"layers": 4 / float(outcome.exit.float().mean())}, score, outcome.exit)

    return evaluate


def test_a_threshold_per_exit_distrusts_an_exit_that_is_sure_and_wrong() -> None:
    recorded = recording(_misled(), replace(SHAPE, exits=4, layers=4, labels=2))
    policy, shape, evaluate = REGISTRY.policy("entropy"), recorded.shape, _judge(recorded)
    common = search.candidates("entropy", policy, {}, shape, evaluate, "layers")
    alone = per_exit.candidates("entropy", policy, common, shape, evaluate, evaluate, "layers", 1.5)
    before, after = (search.pick(found, "layers", 1.5) for found in (common, alone))
    assert before.score < 0.8
    assert after.score == 1.0
    assert len(after.settings["threshold"]) == 3


def test_thresholds_per_exit_are_true_to_the_full_model_whatever_few_labels_say() -> None:
    recorded = recording(_misled(), replace(SHAPE, exits=4, layers=4, labels=2))
    by_labels, faithful = _judge(recorded, 0), _judge(recorded, 1)
    policy, shape = REGISTRY.policy("entropy"), recorded.shape
    common = search.candidates("entropy", policy, {}, shape, by_labels, "layers")
    found = per_exit.candidates("entropy", policy, common, shape, by_labels, faithful, "layers", 1.5)
    chosen = search.pick(found, "layers", 1.5)
    assert chosen.score == 0.0  # the score stays that of the labels
    assert faithful(schedule("entropy", policy, chosen.settings, shape)).score == 1.0
    settled = search.settle(chosen, "entropy", policy, shape, by_labels)
    again = by_labels(schedule("entropy", policy, settled.settings, shape))
    assert torch.equal(again.taken, chosen.taken)
    levels, before = (one.settings["threshold"] for one in (settled, chosen))
    assert [level == -1.0 for level in levels] == [level == -1.0 for level in before], "off stays off"
    assert levels != before, "the others stand between observed values"


@pytest.mark.parametrize("target", [1.05, 1.5, 3.0])
def test_thresholds_per_exit_near_the_target_take_no_speed_up_away(target: float) -> None:
    recorded = recording(_misled(), replace(SHAPE, exits=4, layers=4, labels=2))
    policy, shape, evaluate = REGISTRY.policy("entropy"), recorded.shape, _judge(recorded)
    common = search.candidates("entropy", policy, {}, shape, evaluate, "layers")
    both = per_exit.candidates("entropy", policy, common, shape, evaluate, evaluate, "layers", target)
    ends = [[edge(one.speedup["layers"] for one in found) for edge in (min, max)] for found in (common, both)]
    assert ends[0] == ends[1]
    assert search.fastest_within(both, "layers", 1.0, 0.0) is not None, "to be off loses nothing"
    scores = [search.pick(found, "layers", target).score for found in (common, both)]
    assert scores[1] >= scores[0]
    lists = [one for one in both if isinstance(one.settings["threshold"], list)]
    assert lists
    assert not [one for one in both if one not in lists and 0.98 <= one.speedup["layers"] / target <= 1.05]


def test_thresholds_per_exit_are_judged_by_tempered_probabilities(artifact: Path) -> None:
    """The full model's probabilities as --temperature corrected them, not as they come."""
    registry = installed()
    study = Study(read_artifact(artifact, registry), registry, read("demo:reviews", "validation[:60]"), "accuracy", 32)
    judged: list[torch.Tensor] = []
    judge = type(study.task).faith

    def watched(self: object, full: torch.Tensor) -> object:
        judged.append(full)
        return judge(self, full)  # type: ignore[arg-type]

    study.limits = Limits(temperatures=(2.0,) * study.model.model.shape.exits)
    found = study.candidates("entropy", {}, "layers")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(study.task), "faith", watched)
        chosen = search.pick(study.per_exit("entropy", found, "layers", 1.5), "layers", 1.5)
    assert torch.equal(judged[0], study.recording.logits[-1] / 2)
    assert isinstance(chosen.settings["threshold"], list)


def test_within_a_permitted_loss_thresholds_per_exit_are_as_fast_as_a_common_one(artifact: Path) -> None:
    asked = {"max_drop": 0.02, "currency": "layers", "data": "demo:reviews", "split": "validation[:60]"}
    common = exitkit.calibrate(artifact, **asked)
    both = exitkit.calibrate(artifact, **asked, per_exit=True)
    assert both["measured_speedup"]["layers"] >= common["measured_speedup"]["layers"]


def test_a_threshold_that_is_given_is_not_searched(artifact: Path) -> None:
    with pytest.raises(UsageError, match=r"--per-exit searches policy.entropy.threshold, which is given"):
        exitkit.calibrate(
            artifact, target_speedup=1.2, currency="layers", per_exit=True, policy={"entropy": {"threshold": 0.3}},
            data="demo:reviews", split="validation[:60]",
        )  # fmt: skip


def test_per_exit_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(UsageError, match="'patience' has no setting that may differ"):
        per_exit.varying("patience", REGISTRY.policy("patience"), SHAPE)
    shape = replace(SHAPE, exits=2)
    with pytest.raises(UsageError, match="only one threshold"):
        per_exit.varying("entropy", REGISTRY.policy("entropy"), shape)


# --- stored and used again


def test_calibrated_limits_and_temperatures_hold_in_predict_and_benchmark(artifact: Path) -> None:
    found = exitkit.calibrate(
        artifact,
        target_speedup=1.2,
        currency="layers",
        min_exit=2,
        never_early=["negative"],
        temperature=True,
        per_exit=True,
    )
    assert found["feasible"]
    assert found["exit_histogram"][0] == 0
    stored = yaml.safe_load((artifact / "policy.yaml").read_text())["policies"]["entropy"]["limits"]
    assert stored == found["limits"]
    assert stored["temperatures"] == found["temperature"]["values"]
    report = exitkit.benchmark(artifact, rounds=1, max_rows=100)
    assert report["runs"][0]["exit_histogram"][0] == 0
    model = exitkit.load(artifact)
    texts = ["the food was great", "a bad , slow dinner"] * 10
    answers = model.predict(texts)
    assert all(answer["exit"] == 4 for answer in answers if answer["label"] == "negative")
    assert {answer["exit"] for answer in model.predict(texts, max_exit=1)} == {1}
    with pytest.raises(UsageError, match="--max-exit 9"):
        model.predict(texts, max_exit=9)


def test_a_policy_of_whole_numbers_lists_what_it_can_reach(artifact: Path) -> None:
    found = exitkit.calibrate(artifact, target_speedup=1.01, currency="layers", policy="patience")
    assert {point["settings"]["patience"] for point in found["reachable"]} == {1, 2, 3, 4}
    with pytest.raises(UsageError, match="--never-early: unknown label 'meh'"):
        exitkit.calibrate(artifact, target_speedup=1.2, never_early=["meh"])
