"""The loop: who leaves, who stays, what is computed; and policies that the shipped ones do not cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from families import FAMILIES, LENGTHS, batch, stock, with_exits
from hypothesis import given, settings
from hypothesis import strategies as st

from exitkit.engine.cost import flops, full_work, prices, speedups
from exitkit.engine.loop import every_exit, run
from exitkit.engine.model import ExitModel
from exitkit.engine.replay import record, replay
from exitkit.engine.schedule import Schedule, off, schedule
from exitkit.engine.stream import halt, pack, select
from exitkit.engine.trace import Trace
from exitkit.errors import PluginError
from exitkit.plugins import installed
from exitkit.policy import ExitPolicy, knob, normalised_entropy
from exitkit.testing import check_policy, tiny_batch, tiny_model

REGISTRY = installed()
SETTINGS = {
    "fixed": {"exit": 3},
    "entropy": {"threshold": 0.6},
    "confidence": {"threshold": 0.75},
    "patience": {"patience": 2},
}


def plan(name: str, model: ExitModel, given: dict | None = None) -> Schedule:
    return schedule(name, REGISTRY.policy(name), SETTINGS[name] if given is None else given, model.shape)


def throwaway(policy: type[ExitPolicy], model: ExitModel, **given: object) -> Schedule:
    return schedule("throwaway", policy, given, model.shape)


def cut(rows: dict, part: slice | list[int]) -> dict:
    return {name: value[part] for name, value in rows.items()}


# --- the stream ------------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_dropping_sequences_keeps_the_tokens_places_and_rows_of_the_others(
    lengths: list[int], data: st.DataObject
) -> None:
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(1, 1 + mask.numel()).view_as(mask)
    tokens, stream = pack({"input_ids": ids, "attention_mask": mask})
    stream = stream.carrying(tokens.ids[:, None].float())
    keep = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)).filter(any))
    left, _ = select(stream, keep)
    assert list(left.lengths) == sorted(left.lengths)
    assert left.bounds.diff().tolist() == list(left.lengths)
    for number, row in enumerate(left.row.tolist()):
        start, end = left.bounds[number], left.bounds[number + 1]
        assert left.hidden[start:end, 0].long().tolist() == ids[row, : lengths[row]].tolist()
        assert left.position[start:end].tolist() == list(range(lengths[row]))
    assert left.anchor.tolist() == left.bounds[:-1].tolist()


@pytest.mark.parametrize("field", ["lengths", "bounds", "tokens", "misspelt"])
def test_a_stream_with_other_sequences_or_unknown_fields_is_not_made_by_changing_one(field: str) -> None:
    mask = torch.ones(2, 3, dtype=torch.long)
    _, stream = pack({"input_ids": mask, "attention_mask": mask})
    with pytest.raises(AssertionError, match=field):
        stream.having(**{field: ()})


def test_a_sentence_goes_on_while_one_of_its_words_has_no_answer() -> None:
    words = torch.tensor([[-1, 0, 0, 1, -1], [-1, 0, 1, 2, -1]])
    mask = torch.ones_like(words)
    _, stream = pack({"input_ids": mask, "attention_mask": mask, "words": words})
    stream = stream.carrying(torch.zeros(10, 2))
    left, units = halt(stream, torch.tensor([True, False, True, True, True]))
    assert units.tolist() == [0, 1]
    assert left.tokens == 5, "a halted word stays as key and value"
    assert left.active.tolist() == [0, 3, 4], "its pieces stop, [CLS], [SEP] and the other word go on"
    assert halt(stream, torch.ones(5, dtype=torch.bool)) is None


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_sentence_without_words_changes_nothing_for_the_words_of_another(leaver: int) -> None:
    """As many words as sentences must not be taken for one word each."""

    @dataclass(frozen=True)
    class OneWord(ExitPolicy):
        rewrites: ClassVar[bool] = True

        def decide(self, seen, state):
            return (seen.position == leaver) & (seen.exit == 1), state

    model = with_exits(stock("bert", tags=True))
    rows = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 8, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "words": torch.tensor([[-1, 0, 1, -1], [-1, -1, -1, -1]]),
    }
    settings = throwaway(OneWord, model)
    both, alone = run(model, rows, settings), run(model, cut(rows, [0]), settings)
    assert both.exit.tolist() == alone.exit.tolist() == [1 if word == leaver else 4 for word in (0, 1)]
    assert torch.allclose(both.logits, alone.logits, atol=1e-6)
    assert both.work.queries[1:] == alone.work.queries[1:] == (3, 3, 3)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_size_order_and_padding_change_nothing(name: str) -> None:
    model, rows = tiny_model(), tiny_batch(32)
    settings = plan(name, model)
    whole = run(model, rows, settings)
    if name != "fixed":
        assert len(set(whole.exit.tolist())) >= 3, "at least three exits are in use"
    for size in (1, 7, 32):
        parts = Trace.join([run(model, cut(rows, slice(i, i + size)), settings) for i in range(0, 32, size)])
        assert torch.equal(parts.exit, whole.exit)
        assert torch.allclose(parts.logits, whole.logits, atol=1e-4)
        assert parts.work == whole.work
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).tolist()
    mixed = run(model, cut(rows, order), settings)
    assert torch.equal(mixed.exit, whole.exit[order])
    padded = {key: torch.nn.functional.pad(value, (0, 9)) for key, value in rows.items()}
    assert torch.equal(run(model, padded, settings).exit, whole.exit)


@pytest.mark.parametrize("name", SETTINGS)
def test_off_is_the_full_model(name: str) -> None:
    model, rows = tiny_model(), tiny_batch()
    trace = run(model, rows, off(name, REGISTRY.policy(name), model.shape))
    assert trace.histogram(6) == [0, 0, 0, 0, 0, 24]
    with torch.inference_mode():
        assert torch.allclose(trace.logits, model.stock(**rows).logits, atol=1e-4)


def test_every_answer_is_that_of_the_exit_taken() -> None:
    model, rows = tiny_model(), tiny_batch()
    trace = run(model, rows, plan("entropy", model))
    with torch.inference_mode():
        everything = every_exit(model, rows)
    assert torch.allclose(trace.logits, everything[trace.exit - 1, torch.arange(24)], atol=1e-4)


# --- work ------------------------------------------------------------------------------------------------------------


def watched(model: ExitModel) -> list[tuple[int, int, int]]:
    """(layer, active tokens, all tokens) of every layer that really runs from now on."""
    seen: list[tuple[int, int, int]] = []
    inner = model.encoder.layer

    def layer(index, stream):
        seen.append((index, stream.tokens if stream.active is None else len(stream.active), stream.tokens))
        return inner(index, stream)

    model.encoder.layer = layer
    return seen


@pytest.mark.parametrize("name", SETTINGS)
def test_the_trace_counts_what_ran(name: str) -> None:
    model, rows = tiny_model(), tiny_batch()
    seen = watched(model)
    heads: list[int] = []
    for head in model.heads:
        head.dense.register_forward_hook(lambda module, args, out: heads.append(len(out)))
    trace = run(model, rows, plan(name, model))
    for index, active, tokens in seen:
        assert (trace.work.queries[index], trace.work.keys[index]) == (active, tokens)
    assert sum(trace.work.heads[:-1]) == sum(heads)
    lengths = rows["attention_mask"].sum(1)
    expected = [int(lengths[trace.exit > layer].sum()) for layer in range(6)]
    assert list(trace.work.queries) == expected


def test_a_policy_that_reads_nothing_runs_heads_for_leavers_only() -> None:
    model, rows = tiny_model(), tiny_batch()
    assert run(model, rows, plan("fixed", model)).work.heads == (0, 0, 24, 0, 0, 0)


def test_multiply_adds_by_hand() -> None:
    model = tiny_model(layers=2)
    price = prices(model)
    rows = tiny_batch(1)
    n, d, inner = int(rows["attention_mask"].sum()), 16, 32
    layer = n * (4 * d * d + 2 * d * inner) + 2 * n * n * d
    trace = run(model, rows, plan("fixed", model, {"exit": 1}))
    assert flops(trace.work, price) == layer + d * d + 3 * d
    assert flops(full_work(trace.work, 1), price) == 2 * layer + d * d + 3 * d
    assert speedups(trace, price)["layers"] == 2.0


# --- gates -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SkipsByState(ExitPolicy):
    """Skips layers (the first and the last too) by a rule on the sequence's own states; exits by entropy."""

    rewrites: ClassVar[bool] = True
    threshold: float = knob(0.3, low=0.0, high=1.0, off=-1.0)

    def start(self, units, device):
        return {"asked": torch.zeros(units, dtype=torch.long, device=device)}

    def gate(self, before, state):
        first = before.hidden[before.bounds[:-1], 0]
        return ((first * 10).floor().long() + before.layer) % 3 != 0

    def decide(self, seen, state):
        return normalised_entropy(seen.logits) < self.threshold, {"asked": state["asked"] + 1}


def naive_gates(model: ExitModel, rows: dict, policy: SkipsByState) -> tuple[torch.Tensor, int, int]:
    """One sequence through gates and exits, written down plainly: (logits, exit, layers run)."""
    tokens, stream = pack(rows)
    stream = stream.carrying(model.encoder.embed(tokens))
    executed = 0
    for layer in range(1, 7):
        runs = (int((stream.hidden[0, 0] * 10).floor()) + layer) % 3 != 0
        if runs:
            stream = stream.carrying(model.encoder.layer(layer - 1, stream))
            executed += 1
        if layer == 6:
            return model.read(6, stream)[1], 6, executed
        if runs:
            logits = model.read(layer, stream)[1]
            if normalised_entropy(logits)[0] < policy.threshold:
                return logits, layer, executed
    raise AssertionError


@pytest.mark.parametrize("threshold", [-1.0, 0.5])
def test_gates_skip_any_layer_and_the_last_exit_still_answers(threshold: float) -> None:
    model, rows = tiny_model(), tiny_batch(32)
    settings = throwaway(SkipsByState, model, threshold=threshold if threshold >= 0 else "off")
    policy = settings.first
    with torch.inference_mode():
        expected = [naive_gates(model, cut(rows, [i]), policy) for i in range(32)]
    seen = watched(model)
    trace = run(model, rows, settings)
    assert trace.exit.tolist() == [exit for _, exit, _ in expected]
    assert trace.layers.tolist() == [layers for _, _, layers in expected]
    assert torch.allclose(trace.logits, torch.cat([logits for logits, _, _ in expected]), atol=1e-4)
    ran = dict.fromkeys(range(6), 0)
    for index, active, _ in seen:
        ran[index] += active
    assert list(trace.work.queries) == list(ran.values()), "a skipped layer is really not run"
    assert 0 < ran[0] < trace.work.tokens, "the first layer is skipped by some and not by all"
    alone = Trace.join([run(model, cut(rows, [i]), settings) for i in range(32)])
    assert torch.equal(alone.exit, trace.exit)
    assert torch.equal(alone.layers, trace.layers)


def test_a_unit_that_skipped_cannot_leave_and_keeps_its_state() -> None:
    asked: list[tuple[list[bool], list[int]]] = []

    @dataclass(frozen=True)
    class Leaves(SkipsByState):
        def gate(self, before, state):
            return torch.arange(len(before.bounds) - 1) % 2 == before.layer % 2

        def decide(self, seen, state):
            asked.append((seen.fresh.tolist(), state["asked"].tolist()))
            return torch.full_like(seen.live, seen.exit == 2), {"asked": state["asked"] + 1}

    model, rows = tiny_model(), tiny_batch(4)
    trace = run(model, rows, throwaway(Leaves, model))
    assert asked[0] == ([False, True, False, True], [0, 0, 0, 0])
    assert asked[1] == ([True, False, True, False], [0, 1, 0, 1])
    assert sorted(trace.exit.tolist()) == [2, 2, 6, 6], "only fresh units left at exit 2"


# --- words -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordByWord(ExitPolicy):
    """A word leaves by its own entropy and serves as key and value from then on."""

    rewrites: ClassVar[bool] = True
    threshold: float = knob(0.5, low=0.0, high=1.0, off=-1.0)

    def decide(self, seen, state):
        return normalised_entropy(seen.logits) < self.threshold, state


def tagger(family: str) -> tuple[ExitModel, dict]:
    model = with_exits(stock(family, tags=True))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1.0)
        for head in model.heads:
            head.dense.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
            head.out.weight.normal_(std=0.6, generator=torch.Generator().manual_seed(1))
    rows = batch(model.stock)
    words = torch.full_like(rows["input_ids"], -1)
    for row, length in enumerate(LENGTHS):
        words[row, 1 : length - 1] = torch.arange(length - 2) // 2
    return model, {**rows, "words": words}


def naive_words(model: ExitModel, rows: dict, threshold: float) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Every token computed at every layer, and halted ones put back: (logits, exits, active tokens per layer)."""
    tokens, stream = pack(rows)
    hidden = model.encoder.embed(tokens)
    done = torch.zeros(stream.units, dtype=torch.bool)
    answers = torch.zeros(stream.units, 3, dtype=hidden.dtype)
    exits = torch.zeros(stream.units, dtype=torch.long)
    active_tokens = []
    for layer in range(1, 5):
        running = torch.zeros(stream.sequences, dtype=torch.bool).index_put(
            (stream.sequence[~done],), torch.tensor(True)
        )
        sequence_of = torch.repeat_interleave(torch.tensor(stream.lengths))
        active = torch.where(stream.owner >= 0, ~done[stream.owner], True) & running[sequence_of]
        active_tokens.append(int(active.sum()))
        new = model.encoder.layer(layer - 1, stream.carrying(hidden))
        hidden = torch.where(active[:, None], new, hidden)
        logits = model.read(layer, stream.carrying(hidden))[1]
        leave = ~done if layer == 4 else (normalised_entropy(logits) < threshold) & ~done
        answers[leave], exits[leave] = logits[leave], layer
        done = done | leave
    in_order = stream.row.argsort()
    return answers[in_order], exits[in_order], active_tokens


@pytest.mark.parametrize(
    ("family", "threshold"),
    [("bert", 0.15), ("distilbert", 0.35), ("modernbert", 0.35), ("roberta", 0.2), ("albert", 0.2)],
)
def test_a_halted_word_serves_as_key_and_value_and_keeps_its_answer(family: str, threshold: float) -> None:
    model, rows = tagger(family)
    settings = throwaway(WordByWord, model, threshold=threshold)
    with torch.inference_mode():
        logits, exits, active = naive_words(model, rows, threshold)
    seen = watched(model)
    trace = run(model, rows, settings)
    assert len(set(exits.tolist())) >= 3
    assert torch.equal(trace.exit, exits)
    assert torch.allclose(trace.logits.double(), logits, atol=1e-4)
    assert [tokens for _, tokens, _ in seen] == active[: len(seen)]
    assert any(fewer < tokens for _, fewer, tokens in seen), "somebody was halted while its sentence ran"
    order = [3, 0, 4, 2, 1]
    mixed = run(model, cut(rows, order), settings)
    counts = [(n - 2 + 1) // 2 for n in LENGTHS]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    moved = torch.cat([torch.arange(starts[i], starts[i] + counts[i]) for i in order])
    assert torch.equal(mixed.exit, trace.exit[moved])


def test_dropping_a_halted_words_keys_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tagger("bert")
    settings = throwaway(WordByWord, model, threshold=0.15)
    right = run(model, rows, settings)
    inner = model.encoder.layer

    def forgetful(index, stream):
        if stream.active is not None:
            halted = torch.ones(stream.tokens, dtype=torch.bool).index_fill(0, stream.active, False)
            stream = stream.carrying(stream.hidden.masked_fill(halted[:, None], 0.0))
        return inner(index, stream)

    model.encoder.layer = forgetful
    assert not torch.allclose(run(model, rows, settings).logits, right.logits, atol=1e-3)


def test_words_with_the_policy_off_get_the_plain_models_answer() -> None:
    for family in FAMILIES:
        model, rows = tagger(family)
        if not model.shape.words_halt:
            continue
        trace = run(model, rows, throwaway(WordByWord, model, threshold="off"))
        with torch.inference_mode():
            expected = every_exit(model, rows)[-1]
        assert torch.allclose(trace.logits.double(), expected.double(), atol=1e-4)


# --- the contract ----------------------------------------------------------------------------------------------------


def broken(method: str, result: object) -> type[ExitPolicy]:
    """A policy one of whose methods returns this, or raises it."""

    def wrong(self, *args):
        if isinstance(result, BaseException):
            raise result
        return result(*args) if callable(result) else result

    usual = {"decide": lambda self, seen, state: (seen.live & False, state), "gate": lambda self, before, state: None}
    body = {**usual, method: wrong}
    return dataclass(frozen=True)(type("Broken", (ExitPolicy,), body))


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("decide", ZeroDivisionError("no"), "decide failed at exit 1: ZeroDivisionError: no"),
        ("decide", lambda seen, state: (seen.live[:1], state), "leave must be a tensor"),
        ("decide", lambda seen, state: (seen.logits[:, 0], state), "leave must be a tensor"),
        ("decide", lambda seen, state: (seen.live, {"new": seen.live}), "start fixes its keys"),
        ("start", lambda units, device: {"count": torch.zeros(units + 1)}, "must be a tensor with 24 rows"),
        ("decide", lambda seen, state: (state.setdefault("new", seen.live) & False, state), "start fixes its keys"),
        ("decide", lambda seen, state: (seen.live & False, None), "state that decide gives must be a dict"),
        ("decide", lambda seen, state: ([True] * len(seen.live), state), "must give a tensor or a Decision"),
        ("start", lambda units, device: None, "state that start gives must be a dict"),
        ("start", KeyError("x"), "start failed"),
        ("gate", lambda before, state: torch.ones(3, dtype=torch.bool), "gate's answer must be a tensor"),
        ("gate", RuntimeError("no"), "gate failed before layer 1"),
        ("conclude", lambda seen, state: seen.logits[:1], "conclude's answer must be a tensor"),
        ("gate_cost", KeyError("x"), "gate_cost failed before layer 1"),
        ("decide", lambda seen, state: (seen.live.to("meta"), state), "leave must be .* on cpu, not .* on meta"),
        ("conclude", lambda seen, state: seen.logits.to("meta"), "answer must be .* on cpu, not .* on meta"),
        ("gate", lambda before, state: torch.ones(24, dtype=torch.bool, device="meta"), "gate's answer .* on meta"),
        ("start", lambda units, device: {"n": torch.zeros(units, device="meta")}, "state 'n' is on device meta"),
        *((method, SystemExit(0), f"{method} failed.*SystemExit: 0") for method in ("decide", "start", "conclude")),
        ("gate", GeneratorExit(), "gate failed before layer 1: GeneratorExit"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_named(method: str, result: object, message: str) -> None:
    model = tiny_model()
    with pytest.raises(PluginError, match=f"policy 'throwaway' breaks its contract: .*{message}"):
        run(model, tiny_batch(), throwaway(broken(method, result), model))


CHANGES = {
    "logits": lambda seen, state: seen.logits.mul_(-1),
    "live": lambda seen, state: seen.live.fill_(False),
    "position": lambda seen, state: seen.position[:1].add_(1),
    "count": lambda seen, state: state["count"].add_(1),
}


def changing(change: Callable[..., object], method: str = "decide") -> type[ExitPolicy]:
    """A policy that changes what it is given."""

    def decide(self, seen, state):
        if method == "decide":
            change(seen, state)
        return seen.logits[:, 0] > 9, state

    def conclude(self, seen, state):
        if method == "conclude":
            change(seen, state)

    start = lambda self, units, device: {"count": torch.zeros(units)}  # noqa: E731
    body = {"start": start, "decide": decide, "conclude": conclude}
    return dataclass(frozen=True)(type("Changing", (ExitPolicy,), body))


@pytest.mark.parametrize("method", ["decide", "conclude"])
@pytest.mark.parametrize("field", CHANGES)
def test_a_policy_that_changes_what_it_is_given_is_named_with_the_field(field: str, method: str) -> None:
    model, rows = tiny_model(), tiny_batch()
    plan = throwaway(changing(CHANGES[field], method), model)
    words = f"policy 'throwaway' breaks its contract: {method} changes .*'{field}'"
    with pytest.raises(PluginError, match=words):
        run(model, rows, plan)
    with pytest.raises(PluginError, match=words):
        replay(record(model, [rows]), plan)


def test_a_gate_that_changes_hidden_states_is_named() -> None:
    def gate(self, before, state):
        before.hidden.zero_()

    body = {"gate": gate, "decide": lambda self, seen, state: (seen.live & False, state)}
    policy = dataclass(frozen=True)(type("Gate", (ExitPolicy,), body))
    model = tiny_model()
    with pytest.raises(PluginError, match="gate changes 'hidden'"):
        run(model, tiny_batch(), throwaway(policy, model))


@pytest.mark.parametrize("behind", [lambda t: t.data.neg_(), lambda t: t.detach().neg_(), lambda t: t.numpy().fill(0)])
def test_a_change_behind_torchs_back_is_caught_by_check_policy(behind: Callable[..., object]) -> None:
    with pytest.raises((AssertionError, PluginError)):
        check_policy(changing(lambda seen, state: behind(seen.logits)))


def test_policies_with_a_memory_of_their_own_or_an_eye_on_the_batch_are_caught_by_check_policy() -> None:
    calls = []

    def remembers(self, seen, state):
        calls.append(1)
        return seen.live & (len(calls) % 2 == 0), state

    def averages(self, seen, state):
        sure = seen.logits.float().softmax(-1).amax(-1)
        return sure >= sure.mean(), state

    for decide in (remembers, averages):
        policy = dataclass(frozen=True)(type("Wrong", (ExitPolicy,), {"decide": decide}))
        with pytest.raises(AssertionError):
            check_policy(policy)
