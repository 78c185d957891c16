"""Policy `skip-gate`: gates decide by sequence, a skipped layer is not run, and all of it is counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from exitkit_policies.skip_gate import AttentionGate, Gates, LinearGate, SkipGate
from families import LENGTHS, batch, stock, with_exits

import exitkit
from exitkit.engine.cost import flops, prices
from exitkit.engine.limits import NONE, Limits
from exitkit.engine.loop import run
from exitkit.engine.model import ExitModel
from exitkit.engine.schedule import Schedule, off, schedule
from exitkit.engine.stream import pack
from exitkit.engine.trace import Trace
from exitkit.errors import UsageError
from exitkit.policy import Shape, normalised_entropy
from exitkit.testing import SHAPE, check_policy, evidence, tiny_batch, tiny_model


def gated(model: ExitModel, kind: str = "attention", spread: float = 20.0, seed: int = 0) -> Gates:
    """Give a model random gates whose answers differ from sequence to sequence."""
    torch.manual_seed(seed)
    gates = SkipGate.probe(model.shape, kind)
    assert isinstance(gates, Gates)
    with torch.no_grad():
        for gate in gates:
            gate.out.weight.mul_(spread)
            gate.out.bias.zero_()
    dtype = next(model.parameters()).dtype
    model.probes["skip-gate"] = gates.to(dtype).eval()
    return gates


def answering(gates: Gates, log_odds: list[float]) -> None:
    """Gates that say the same of every sequence, layer by layer."""
    with torch.no_grad():
        for gate, value in zip(gates, log_odds, strict=True):
            gate.out.weight.zero_()
            gate.out.bias.fill_(value)


def plan(model: ExitModel, **settings: object) -> Schedule:
    return schedule("skip-gate", SkipGate, {"threshold": "off", **settings}, model.shape)


def cut(rows: dict, part: slice | list[int]) -> dict:
    return {name: value[part] for name, value in rows.items()}


# --- the gates -------------------------------------------------------------------------------------------------------


def packed(*lengths: int, width: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), width, generator=random), torch.tensor([0, *lengths]).cumsum(0)


def test_the_attention_gate_is_the_first_token_of_attention_among_all_tokens() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(16).double()
    hidden, bounds = packed(3, 7, 1, 7)
    hidden = hidden.double()
    found = gate(hidden, bounds)
    for number, (start, stop) in enumerate(pairwise(bounds.tolist())):
        states = torch.tanh(gate.dense(hidden[start:stop]))
        heads = []
        for part in (slice(0, 64), slice(64, 128)):
            q, k, v = (one(states)[:, part] for one in (gate.query, gate.key, gate.value))
            heads.append((q @ k.T / math.sqrt(64)).softmax(dim=-1) @ v)  # all tokens ask
        by_hand = gate.out(torch.cat(heads, dim=-1)[0])
        assert found[number].item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_the_attention_gate_survives_scores_that_would_overflow() -> None:
    gate = AttentionGate(16)
    with torch.no_grad():
        gate.query.weight.mul_(1e3)
        gate.key.weight.mul_(1e3)
    hidden, bounds = packed(4, 5)
    found = gate(hidden.requires_grad_(), bounds)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(hidden.grad).all()


def test_the_linear_gate_reads_the_normalised_mean() -> None:
    gate = LinearGate(2)
    with torch.no_grad():
        gate.out.weight.copy_(torch.tensor([[3.0, 1.0]]))
        gate.out.bias.fill_(0.5)
    hidden = torch.tensor([[4.0, 0.0], [8.0, 2.0], [100.0, 300.0]])
    found = gate(hidden, torch.tensor([0, 2, 3]))  # means (6, 1) and (100, 300): normalised (1, −1) and (−1, 1)
    assert found.tolist() == pytest.approx([3 - 1 + 0.5, -3 + 1 + 0.5], abs=1e-4)


@pytest.mark.parametrize("kind", ["attention", "linear"])
def test_a_gate_says_the_same_of_a_sequence_in_any_company(kind: str) -> None:
    torch.manual_seed(0)
    gates = SkipGate.probe(SHAPE, kind).double()
    hidden, bounds = packed(3, 6, 2, width=SHAPE.width)
    hidden = hidden.double()
    together = gates(2, hidden, bounds)
    for number in range(3):
        rows = hidden[bounds[number] : bounds[number + 1]]
        alone = gates(2, rows, torch.tensor([0, len(rows)]))
        assert alone.item() == pytest.approx(together[number].item(), abs=1e-12)
    assert not torch.allclose(together, gates(3, hidden, bounds)), "every layer has a gate of its own"


def test_a_kind_of_gate_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="no gate of kind 'cubic'; there are linear, attention"):
        SkipGate.probe(SHAPE, "cubic")
    with pytest.raises(ValueError, match="no gate of kind '\\['linear'\\]'"):
        SkipGate.probe(SHAPE, ["linear"])


# --- decisions -------------------------------------------------------------------------------------------------------


def test_a_gate_that_does_not_say_what_it_costs_is_caught() -> None:
    @dataclass(frozen=True)
    class Free(SkipGate):
        def gate_cost(self, before):
            return 0

    with pytest.raises(AssertionError, match="gate_cost must say what asking the probe costs"):
        check_policy(Free, "free")


def test_a_layer_is_skipped_from_the_threshold_on() -> None:
    model = tiny_model()
    answering(gated(model), [0.0] * 6)  # g = 0.5 exactly
    rows = tiny_batch(4)
    assert run(model, rows, plan(model, skip_at=0.5)).layers.tolist() == [0] * 4
    assert run(model, rows, plan(model, skip_at=0.500001)).layers.tolist() == [6] * 4


def test_off_holds_where_a_threshold_of_one_is_defeated_by_rounding_and_asks_nobody() -> None:
    model = tiny_model()
    gates = gated(model)
    answering(gates, [100.0] * 6)  # the sigmoid rounds to 1
    asked: list[None] = []
    gates.register_forward_hook(lambda *_: asked.append(None))
    rows = tiny_batch(4)
    assert run(model, rows, plan(model, skip_at=1.0)).layers.tolist() == [0] * 4
    asked.clear()
    trace = run(model, rows, off("skip-gate", SkipGate, model.shape))
    assert trace.layers.tolist() == [6] * 4
    assert trace.exit.tolist() == [6] * 4
    assert (len(asked), trace.work.probes) == (0, 0)


def test_it_leaves_by_normalised_entropy_and_never_in_regression() -> None:
    shares = torch.tensor([[0.5, 0.25, 0.25], [0.98, 0.01, 0.01]])
    entropy = normalised_entropy(shares.log())[1].item()
    policy = SkipGate(threshold=entropy + 1e-4)
    assert policy.decide(evidence(shares.log()), {})[0].tolist() == [False, True]
    labels = torch.tensor([[9.0, 0.1], [9.0, -9.0]])  # the second is sure of both
    assert policy.decide(evidence(labels, task="multi-label"), {})[0].tolist() == [False, True]
    values = torch.zeros(2, 1)
    assert SkipGate(threshold=1.0).decide(evidence(values, task="regression"), {})[0].tolist() == [False, False]
    assert SkipGate.refuses(Shape(6, 6, 1, 8, "regression")) is None
    assert SkipGate.refuses(Shape(6, 6, 3, 8, "tagging")) is not None


# --- what runs, and what it costs ------------------------------------------------------------------------------------


def rows_through_layers(model: ExitModel) -> list[int]:
    """Rows [L] that the feed-forward part of every layer multiplies from now on."""
    counted = [0] * model.shape.layers
    for number, block in enumerate(model.encoder.blocks):

        def count(module, inputs, output, number=number):
            counted[number] += inputs[0].shape[0]

        block.intermediate.dense.register_forward_hook(count)
    return counted


@pytest.mark.parametrize("kind", ["attention", "linear"])
def test_a_skipped_layer_is_not_run(kind: str) -> None:
    model, rows = tiny_model(), tiny_batch(32)
    gates = gated(model, kind)
    said: list[torch.Tensor] = []
    gates.register_forward_hook(lambda module, inputs, output: said.append(output))
    counted = rows_through_layers(model)
    trace = run(model, rows, plan(model, skip_at=0.5))
    lengths = rows["attention_mask"].sum(dim=1).sort(stable=True).values
    expected = [int(lengths[output < 0.5].sum()) for output in said]
    assert counted == expected == list(trace.work.queries)
    assert len({*expected, 0, int(lengths.sum())}) > 3, "gates tell sequences apart"
    assert (trace.exit == 6).all()
    assert int(trace.layers.sum()) == sum(int((output < 0.5).sum()) for output in said)


def test_a_layer_that_everybody_skips_is_not_even_called_and_the_last_exit_answers_on_what_there_is() -> None:
    model, rows = tiny_model(), tiny_batch(5)
    answering(gated(model), [9.0, -9.0, 9.0, -9.0, 9.0, 9.0])  # layers 2 and 4 run
    called: list[int] = []
    for number, block in enumerate(model.encoder.blocks):
        block.attention.self.query.register_forward_hook(lambda *_, number=number: called.append(number + 1))
    trace = run(model, rows, plan(model))
    assert called == [2, 4]
    assert trace.layers.tolist() == [2] * 5
    with torch.inference_mode():
        tokens, stream = pack(rows)
        stream = stream.carrying(model.encoder.embed(tokens))
        for layer in (2, 4):
            stream = stream.carrying(model.encoder.layer(layer - 1, stream))
        expected = model.read(6, stream)[1][stream.row.argsort()]
    assert torch.allclose(trace.logits, expected, atol=1e-5)


def test_a_skipped_layer_asks_no_exit() -> None:
    model, rows = tiny_model(), tiny_batch(5)
    answering(gated(model), [9.0, -9.0, 9.0, -9.0, 9.0, -9.0])
    trace = run(model, rows, plan(model, threshold=0.0))
    assert trace.work.heads == (0, 5, 0, 5, 0, 5)
    assert run(model, rows, plan(model)).work.heads == (0, 0, 0, 0, 0, 5), "gates alone need no exit heads"
    eager = run(model, rows, plan(model, threshold=1.0))
    assert eager.exit.tolist() == [2] * 5
    assert eager.layers.tolist() == [1] * 5


@pytest.mark.parametrize("settings", [{"limits": Limits(min_exit=3)}, {"threshold": ["off", "off", 1.0, 1.0, 1.0]}])
def test_what_ran_since_the_last_exit_that_was_asked_counts_at_the_next_one(settings: dict) -> None:
    """Layers 3 and 5 are skipped. Exits 1 and 2 are not asked, so exit 3 is the first to see layers 1 and 2."""
    model, rows = tiny_model(), tiny_batch(5)
    answering(gated(model), [-9.0, -9.0, 9.0, -9.0, 9.0, -9.0])
    given = {"threshold": settings.get("threshold", 1.0)}
    trace = run(model, rows, schedule("skip-gate", SkipGate, given, model.shape, settings.get("limits", NONE)))
    assert trace.exit.tolist() == [3] * 5
    assert trace.layers.tolist() == [2] * 5
    assert trace.work.heads == (0, 0, 5, 0, 0, 0)
    with torch.inference_mode():
        tokens, stream = pack(rows)
        stream = stream.carrying(model.encoder.embed(tokens))
        for layer in (1, 2):
            stream = stream.carrying(model.encoder.layer(layer - 1, stream))
        expected = model.read(3, stream)[1][stream.row.argsort()]
    assert torch.allclose(trace.logits, expected, atol=1e-5)


def test_an_exit_that_was_asked_is_not_asked_again_before_a_layer_has_run() -> None:
    model, rows = tiny_model(), tiny_batch(5)
    answering(gated(model), [-9.0, -9.0, 9.0, 9.0, -9.0, -9.0])
    plan = schedule("skip-gate", SkipGate, {"threshold": 0.0}, model.shape, Limits(min_exit=2))
    assert run(model, rows, plan).work.heads == (0, 5, 0, 0, 5, 5)


def test_the_gates_cost_what_they_multiply() -> None:
    """d = 16. Attention: per token 16·128 + 2·128² + 2·128, per sequence 128² + 128. Linear: 16 per sequence."""
    for kind, cost in (
        ("attention", lambda tokens, sequences: tokens * (2048 + 32768 + 256) + sequences * (16384 + 128)),
        ("linear", lambda tokens, sequences: sequences * 16),
    ):
        model, rows = tiny_model(), tiny_batch(8)
        tokens = int(rows["attention_mask"].sum())
        answering(gated(model, kind), [-9.0] * 6)
        trace = run(model, rows, plan(model, threshold=0.0))
        assert trace.work.probes == 6 * cost(tokens, 8), "asked before every layer"
        eager = run(model, rows, plan(model, threshold=1.0))
        assert eager.exit.tolist() == [1] * 8
        assert eager.work.probes == cost(tokens, 8), "asked of sequences that still run only"
        without = run(model, rows, plan(model, skip_at="off"))
        price = prices(model)
        assert flops(trace.work, price) - flops(without.work, price) == trace.work.probes


@pytest.mark.parametrize("family", ["bert", "albert with two groups of two", "modernbert", "deberta-v3"])
@pytest.mark.parametrize("kind", ["attention", "linear"])
def test_company_order_and_padding_change_nothing_in_any_family(family: str, kind: str) -> None:
    model = with_exits(stock(family))
    gated(model, kind)
    rows = batch(model.stock, lengths=(*LENGTHS, 9, 12, 3))
    units = len(rows["input_ids"])
    settings = plan(model, threshold=0.9)
    whole = run(model, rows, settings)
    assert 0 < int(whole.layers.sum()) < 4 * units, "some skip and some run"
    alone = Trace.join([run(model, cut(rows, [number]), settings) for number in range(units)])
    order = torch.randperm(units, generator=torch.Generator().manual_seed(0))
    turned = run(model, cut(rows, order.tolist()), settings)
    wider = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in rows.items()}
    padded = run(model, wider, settings)
    back = order.argsort()
    for trace, take in ((alone, slice(None)), (turned, back), (padded, slice(None))):
        assert torch.equal(trace.exit[take], whole.exit)
        assert torch.equal(trace.layers[take], whole.layers)
        assert torch.allclose(trace.logits[take], whole.logits, atol=1e-6)


# --- without the probe -----------------------------------------------------------------------------------------------


def test_an_artifact_without_gates_names_the_recipe_that_trains_them(artifact: Path) -> None:
    needs = r"'skip-gate' needs a probe .* --recipe smartbert"
    with pytest.raises(UsageError, match=needs):
        exitkit.calibrate(artifact, target_speedup=1.5, currency="layers", policy="skip-gate")
    with pytest.raises(UsageError, match=needs):
        exitkit.load(artifact).predict(["a film"], policy="skip-gate")
    with pytest.raises(UsageError, match=needs):
        exitkit.benchmark(artifact, rounds=1, max_rows=40, policy="skip-gate", speedups="1x")
