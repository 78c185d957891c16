"""Every policy keeps the contract, and each does what its paper says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from exitkit.engine.replay import replay
from exitkit.engine.schedule import schedule
from exitkit.errors import PluginError, UsageError
from exitkit.plugins import installed
from exitkit.policy import Decision, ExitPolicy, Shape, knob, normalised_entropy
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
        ("entropy", {"threshold": 1.5}, "out of range; allowed are 0 to 1.09861 or 'off'"),  # ln 3, for nats
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
        "decide changes 'logits'",
    ),
    "overwrites the evidence with the same values each time": (
        lambda p, seen, state: (by_entropy(p, replace(seen, logits=seen.logits.clamp_(max=1.0))), state),
        "decide changes 'logits'",
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

    with pytest.raises(PluginError, match="decide changes state 'last'"):
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


def test_plain_settings_are_told_only_where_they_are_not_usual() -> None:
    policy = REGISTRY.policy("entropy")
    assert schedule("entropy", policy, {}, SHAPE).settings == {"threshold": 0.1}
    assert schedule("entropy", policy, {"nats": True}, SHAPE).settings == {"threshold": 0.1, "nats": True}


def test_a_setting_without_a_default_must_be_given() -> None:
    shape = Shape(exits=3, layers=3, labels=2, width=8, task="classification")
    with pytest.raises(UsageError, match=r"policy\.plain\.words has no default"):
        schedule("plain", Plain, {}, shape)


# --- votes, patience over certainty, hashes, nats


def test_votes_need_not_be_in_a_row_and_all_exits_answer_together() -> None:
    said = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    logits = torch.stack([said[label] for label in "abab"])[:, None]
    shape = replace(SHAPE, exits=4, layers=4, labels=2)
    outcome = replay(recording(logits, shape), schedule("vote", REGISTRY.policy("vote"), {"votes": 2}, shape))
    assert outcome.exit.tolist() == [3]
    mean = torch.stack([said[label].softmax(-1) for label in "aba"]).mean(0)
    assert torch.allclose(outcome.logits[0].softmax(-1), mean, atol=1e-6)
    late = replay(recording(logits, shape), schedule("vote", REGISTRY.policy("vote"), {"votes": "off"}, shape))
    assert late.exit.tolist() == [4]
    everyone = torch.stack([said[label].softmax(-1) for label in "abab"]).mean(0)
    assert torch.allclose(late.logits[0].softmax(-1), everyone, atol=1e-6), "the last exit votes too"


def test_certain_exits_must_come_in_a_row() -> None:
    sure, unsure = [5.0, 0.0], [0.1, 0.0]
    logits = torch.tensor([sure, unsure, sure, sure, sure])[:, None]
    shape = replace(SHAPE, exits=5, layers=5, labels=2)
    policy = REGISTRY.policy("patient-confidence")
    for patience, exit in ((1, 1), (2, 4), (3, 5)):
        plan = schedule("patient-confidence", policy, {"threshold": 0.3, "patience": patience}, shape)
        assert replay(recording(logits, shape), plan).exit.tolist() == [exit]


def test_a_hash_sends_the_same_text_to_the_same_exit_and_many_texts_to_all() -> None:
    from exitkit.engine.loop import keys, run
    from exitkit.testing import tiny_batch, tiny_model

    model, batch = tiny_model(), tiny_batch(200)
    plan = schedule("hash", REGISTRY.policy("hash"), {"rate": 0.3}, model.shape)
    taken = run(model, batch, plan).exit
    share = torch.bincount(taken, minlength=7)[1:] / 200
    expected = torch.tensor([0.3, 0.21, 0.147, 0.103, 0.072, 0.168])
    assert (share - expected).abs().max() < 0.1
    wider = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in batch.items()}
    assert torch.equal(keys(wider), keys(batch)), "padding changes nobody's key"
    assert torch.equal(run(model, {name: value[50:60] for name, value in batch.items()}, plan).exit, taken[50:60])
    assert len(set(keys(batch).tolist())) > 190
    trace = run(model, batch, plan)
    assert trace.work.heads[0] == int((taken == 1).sum()), "heads are run for leavers only"


def test_a_threshold_in_nats_is_divided_by_the_largest_entropy() -> None:
    logits = scripted(50)[0]
    policy = REGISTRY.policy("entropy")
    nats = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    assert torch.equal(policy(threshold=0.9, nats=True).decide(evidence(logits), {})[0], nats < 0.9)
    many = replace(SHAPE, labels=77)
    assert schedule("entropy", policy, {"nats": True, "threshold": 4.3}, many).settings["threshold"] == 4.3
    with pytest.raises(UsageError, match="allowed are 0 to 4"):
        schedule("entropy", policy, {"nats": True, "threshold": 4.4}, many)
