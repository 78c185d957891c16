"""Every policy keeps the contract, and each does what its paper says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from exitkit.errors import PluginError, UsageError
from exitkit.plugins import installed
from exitkit.policy import Decision, ExitPolicy, Shape, knob, normalised_entropy
from exitkit.replay import replay
from exitkit.settings import schedule
from exitkit.testing import SHAPE, check_policy, evidence, recording, scripted

REGISTRY = installed()


@pytest.mark.parametrize("name", REGISTRY.names("policy"))
def test_every_installed_policy_keeps_the_contract(name: str) -> None:
    check_policy(REGISTRY.policy(name), name)


def exits_of_labels(labels: str, patience: int) -> int:
    logits = torch.zeros(len(labels), 1, 2)
    for exit, label in enumerate(labels):
        logits[exit, 0, "ab".index(label)] = 1.0
    shape = Shape(exits=len(labels), layers=len(labels), labels=2, width=8, task="classification")
    plan = schedule("patience", REGISTRY.policy("patience"), {"patience": patience}, shape)
    return int(replay(recording(logits, shape), plan).exit[0])


@pytest.mark.parametrize(
    ("labels", "patience", "exit"),
    [
        ("aabbb", 2, 5),  # a change sets the counter to 0
        ("aabbb", 1, 2),
        ("aaaaaa", 3, 4),  # the earliest exit is patience + 1
        ("ababab", 1, 6),  # never twice the same
        ("abbbbb", 2, 4),
    ],
)
def test_patience_on_scripted_labels(labels: str, patience: int, exit: int) -> None:
    assert exits_of_labels(labels, patience) == exit


def test_normalised_entropy_by_hand() -> None:
    shares = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    expected = (0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3)
    assert normalised_entropy(shares.log()).tolist() == pytest.approx([expected, 1.0], abs=1e-6)


@pytest.mark.parametrize("logits", [[1e4, 0.0, 0.0], [0.0, -math.inf, -math.inf]])
def test_entropy_of_the_surest_answers_is_zero_and_not_nan(logits: list[float]) -> None:
    assert normalised_entropy(torch.tensor([logits])).item() == 0.0


def test_entropy_stays_within_zero_and_one_in_bf16() -> None:
    values = normalised_entropy((scripted(500) * 20).to(torch.bfloat16))
    assert values.min() >= 0
    assert values.max() <= 1


def test_confidence_compares_the_largest_probability() -> None:
    plan = schedule("confidence", REGISTRY.policy("confidence"), {"threshold": 0.7}, SHAPE)
    shares = torch.tensor([[0.69, 0.2, 0.11], [0.71, 0.2, 0.09]])
    leave, _ = plan.first.decide(evidence(shares.log()), {})
    assert leave.tolist() == [False, True]


def test_fixed_sends_everybody_away_at_its_exit() -> None:
    plan = schedule("fixed", REGISTRY.policy("fixed"), {"exit": 3}, SHAPE)
    assert set(replay(recording(scripted()), plan).exit.tolist()) == {3}


def test_a_list_gives_every_exit_its_own_threshold() -> None:
    plan = schedule("entropy", REGISTRY.policy("entropy"), {"threshold": [-1.0, -1.0, 1.0, 0.5, 0.5]}, SHAPE)
    taken = replay(recording(scripted()), plan).exit
    assert taken.min() == 3


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        ("entropy", {"treshold": 0.1}, "Did you mean 'threshold'"),
        ("entropy", {"threshold": 1.5}, "out of range; allowed are 0 to 1 or 'off'"),
        ("entropy", {"threshold": "high"}, "not a number"),
        ("entropy", {"threshold": float("nan")}, "not a number"),
        ("entropy", {"threshold": [0.1, 0.2]}, "got 2 values"),
        ("entropy", {"threshold": True}, "not a number"),
        ("patience", {"patience": 1.5}, "not a whole number"),
        ("patience", {"patience": 0}, "out of range; allowed are 1 to 5"),
        ("patience", {"patience": [1, 1, 1, 1, 1]}, "one value for all exits"),
        ("fixed", {"exit": 7}, "out of range"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(policy: str, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        schedule(policy, REGISTRY.policy(policy), settings, SHAPE)


@pytest.mark.parametrize("value", ["off", False])
def test_off_is_a_value_of_a_knob_as_a_word_and_as_yaml_reads_it(value: object) -> None:
    plan = schedule("entropy", REGISTRY.policy("entropy"), {"threshold": value}, SHAPE)
    assert plan.settings["threshold"] == -1.0


@pytest.mark.parametrize("text", ["1e-2", "0.01"])
def test_numbers_that_yaml_reads_as_text_are_numbers(text: str) -> None:
    plan = schedule("entropy", REGISTRY.policy("entropy"), {"threshold": text}, SHAPE)
    assert plan.settings["threshold"] == 0.01


def leave(decide):
    """A policy class with this `decide`."""

    @dataclass(frozen=True)
    class Throwaway(ExitPolicy):
        threshold: float = knob(0.5, low=0.0, high=1.0, off=-1.0)

        def decide(self, seen, state):
            return decide(self, seen, state)

    return Throwaway


def by_entropy(policy, seen):
    return normalised_entropy(seen.logits) < policy.threshold


BROKEN = {
    "waits for the whole batch, like PABEE as published": (
        lambda p, seen, state: (by_entropy(p, seen).all().expand(len(seen.live)).clone(), state),
        "changes a unit's decision",
    ),
    "gives numbers": (lambda p, seen, state: (normalised_entropy(seen.logits), state), "must be a tensor"),
    "changes the evidence": (
        lambda p, seen, state: (by_entropy(p, replace(seen, logits=seen.logits.mul_(1.5))), state),
        "decide changes the evidence",
    ),
    "overwrites the evidence with the same values each time": (
        lambda p, seen, state: (by_entropy(p, replace(seen, logits=seen.logits.clamp_(max=1.0))), state),
        "decide changes the evidence",
    ),
    "turns the wrong way": (
        lambda p, seen, state: ((normalised_entropy(seen.logits) > p.threshold) & (p.threshold >= 0), state),
        "must make exits earlier",
    ),
    "leaves though it is off": (
        lambda p, seen, state: (normalised_entropy(seen.logits) < abs(p.threshold), state),
        "although the policy is off",
    ),
    "grows a state": (
        lambda p, seen, state: (by_entropy(p, seen), {"count": seen.live.long()}),
        "start fixes its keys",
    ),
}


def test_check_policy_catches_a_policy_that_overwrites_its_state_with_the_same_values_each_time() -> None:
    @dataclass(frozen=True)
    class Overwrites(ExitPolicy):
        threshold: float = knob(0.5, low=0.0, high=1.0, off=-1.0)

        def start(self, units, device):
            return {"last": torch.zeros(units)}

        def decide(self, seen, state):
            state["last"].copy_(normalised_entropy(seen.logits))
            return state["last"] < self.threshold, state

    with pytest.raises(AssertionError, match="decide changes its state"):
        check_policy(Overwrites)


def remembers(p, seen, state):
    state["last"] = normalised_entropy(seen.logits)
    return state["last"] < p.threshold, state


def test_check_policy_catches_a_policy_that_adds_to_the_state_it_was_given() -> None:
    with pytest.raises(PluginError, match="start fixes its keys"):
        check_policy(leave(remembers))


@pytest.mark.parametrize("what", BROKEN)
def test_check_policy_catches_a_policy_that(what: str) -> None:
    decide, message = BROKEN[what]
    with pytest.raises((AssertionError, PluginError), match=message):
        check_policy(leave(decide))


def test_an_answer_of_the_policys_own_takes_the_place_of_the_exits() -> None:
    def decide(p, seen, state):
        return Decision(by_entropy(p, seen), answer=-seen.logits), state

    plan = schedule("throwaway", leave(decide), {"threshold": 0.9}, SHAPE)
    logits = scripted()
    outcome = replay(recording(logits), plan)
    early = outcome.exit < SHAPE.exits
    assert early.any()
    assert torch.equal(outcome.logits[early], -logits[outcome.exit - 1, torch.arange(40)][early])


@dataclass(frozen=True)
class Plain(ExitPolicy):
    """A plain setting that is a list, and one without a default."""

    words: list[str]
    threshold: float = knob(0.5, low=0.0, high=1.0)

    def decide(self, seen, state):
        return torch.full_like(seen.live, bool(self.words)), state


def test_a_plain_list_is_one_setting_and_not_one_value_per_exit() -> None:
    shape = Shape(exits=3, layers=3, labels=2, width=8, task="classification")
    for words in ([], ["a"], ["a", "b", "c", "d"]):
        assert [step.words for step in schedule("plain", Plain, {"words": words}, shape).steps] == [words] * 3


def test_a_setting_without_a_default_must_be_given() -> None:
    shape = Shape(exits=3, layers=3, labels=2, width=8, task="classification")
    with pytest.raises(UsageError, match=r"policy\.plain\.words has no default"):
        schedule("plain", Plain, {}, shape)
