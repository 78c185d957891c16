"""A cascade: larger models run for the rows that are left, and everything that knows exits knows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import stock, with_exits
from torch import Tensor
from transformers import PreTrainedModel

from exitkit.calibration.layer_time import LayerTimes, Line, PredictedTime
from exitkit.engine.cascade import Cascade
from exitkit.engine.cost import ReplayCost, flops, full_work, prices, speedups
from exitkit.engine.limits import Limits
from exitkit.engine.model import ExitModel
from exitkit.engine.replay import Outcome, record, replay
from exitkit.engine.schedule import Schedule, off, schedule
from exitkit.engine.stream import own
from exitkit.engine.trace import Trace
from exitkit.errors import UsageError
from exitkit.plugins import installed
from exitkit.policy import ExitPolicy
from exitkit.testing import evidence, tiny_batch, tiny_model

REGISTRY = installed()
ROWS = 32


def joined(*models: ExitModel) -> Cascade:
    whole = [schedule("fixed", REGISTRY.policy("fixed"), {"exit": one.shape.exits}, one.shape) for one in models]
    return Cascade(models, whole).eval()


def wide() -> PreTrainedModel:
    """A random DistilBERT with weights as `tiny_model` has them."""
    model = stock("distilbert", dtype=torch.float32)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, torch.nn.LayerNorm):
                parameter.data.fill_(float(name == "weight"))
            else:
                parameter.data.normal_(std=1.0 if isinstance(module, torch.nn.Embedding) else 0.3)
    return model


@pytest.fixture(scope="module")
def three() -> Cascade:
    """Two layers 16 wide, four of another family 32 wide, six 16 wide; sure of some rows and unsure of others."""
    made = joined(tiny_model(2, seed=1), with_exits(wide()), tiny_model(6, seed=3))
    said = record(made, [texts()]).logits
    for model, logits in zip(made.models, said, strict=True):
        head, scale = model.stock.classifier, 2 / logits.std(dim=0)
        with torch.no_grad():
            head.weight.mul_(scale[:, None])
            head.bias.copy_((head.bias - logits.mean(dim=0)) * scale)
    return made


def texts(rows: int = ROWS) -> dict[str, Tensor]:
    """Rows that the smallest model reads as other tokens than the two larger ones do."""
    apart = tiny_batch(rows, seed=7)
    return {**tiny_batch(rows), **{f"0/{name}": values for name, values in apart.items()}}


def cut(rows: dict[str, Tensor], part: slice | list[int]) -> dict[str, Tensor]:
    return {name: values[part] for name, values in rows.items()}


def plan(model: Cascade, name: str = "cascade", limits: Limits | None = None, **settings: object) -> Schedule:
    return schedule(name, REGISTRY.policy(name), settings, model.shape, limits or Limits())


def counted(model: Cascade) -> list[list[int]]:
    """Tokens that every model has embedded, call by call, from here on."""
    seen: list[list[int]] = [[] for _ in model.models]
    for calls, one in zip(seen, model.models, strict=True):
        table = one.stock.get_input_embeddings()
        table.register_forward_hook(lambda module, given, out, calls=calls: calls.append(out[..., 0].numel()))
    return seen


WORKING = [
    ("cascade", {"threshold": 0.9}),
    ("cascade", {"threshold": [0.95, 0.8]}),
    ("entropy", {"threshold": 0.4}),
    ("entropy", {"threshold": ["off", 0.4]}),
    ("entropy", {"threshold": [0.3, "off"]}),
    ("confidence", {"threshold": 0.9}),
    ("patience", {"patience": 1}),
    ("patient-confidence", {"threshold": 0.6, "patience": 2}),
    ("vote", {"votes": 2}),
    ("hash", {"rate": 0.4}),
    ("fixed", {"exit": 2}),
]


# --- running ---------------------------------------------------------------------------------------------------------


def test_rows_that_have_their_answer_are_not_run_by_larger_models(three: Cascade) -> None:
    rows, seen = texts(), counted(three)
    trace = three.run(rows, plan(three, threshold=0.9))
    assert min(trace.histogram(3)) > 0, "every model answers somebody"
    for number, calls in enumerate(seen):
        left = trace.exit > number
        lengths = own(rows, number)["attention_mask"].sum(dim=1)
        assert calls == [int(lengths[left].sum())], f"model {number + 1} reads the rows that reach it, once"
    assert trace.layers.tolist() == [{1: 2, 2: 6, 3: 12}[exit] for exit in trace.exit.tolist()]


def test_every_answer_is_that_of_the_model_that_gave_it(three: Cascade) -> None:
    rows = texts()
    trace = three.run(rows, plan(three, threshold=0.9))
    for row, exit in enumerate(trace.exit.tolist()):
        model = three.models[exit - 1]
        alone = model.run(own(cut(rows, [row]), exit - 1), three.whole[exit - 1])
        assert torch.allclose(trace.logits[row], alone.logits[0], atol=1e-4)
        assert exit == 3 or trace.logits[row].softmax(-1).max() > 0.9


def test_nobody_is_left_for_models_above_when_all_are_answered(three: Cascade) -> None:
    seen = counted(three)
    trace = three.run(texts(), plan(three, threshold=1 / 3))
    assert trace.histogram(3) == [ROWS, 0, 0]
    assert [len(calls) for calls in seen] == [1, 0, 0]


@pytest.mark.parametrize(("name", "settings"), WORKING)
def test_batch_size_order_and_padding_change_nothing(three: Cascade, name: str, settings: dict) -> None:
    rows, chosen = texts(), plan(three, name, **settings)
    whole = three.run(rows, chosen)
    for size in (1, 7, ROWS):
        parts = Trace.join([three.run(cut(rows, slice(i, i + size)), chosen) for i in range(0, ROWS, size)])
        assert torch.equal(parts.exit, whole.exit)
        assert torch.equal(parts.layers, whole.layers)
        assert torch.allclose(parts.logits, whole.logits, atol=1e-4)
        assert parts.work == whole.work
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(three.run(cut(rows, order), chosen).exit, whole.exit[order])
    wider = {key: torch.nn.functional.pad(values, (0, 9)) for key, values in rows.items()}
    if "key" not in REGISTRY.policy(name).reads:
        assert torch.equal(three.run(wider, chosen).exit, whole.exit)


@pytest.mark.parametrize(("name", "settings"), WORKING)
@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(min_exit=2),
        Limits(max_exit=2),
        Limits(min_exit=3, max_exit=2),
        Limits(temperatures=(2.0, 0.7, 1.5)),
    ],
)
def test_a_replay_gives_answers_exits_and_work_of_a_run(
    three: Cascade, name: str, settings: dict, limits: Limits
) -> None:
    rows, chosen = texts(), plan(three, name, limits, **settings)
    recorded, price = record(three, [cut(rows, slice(0, 20)), cut(rows, slice(20, ROWS))]), prices(three)
    outcome, trace = replay(recorded, chosen), three.run(rows, chosen)
    assert torch.equal(outcome.exit, trace.exit)
    assert torch.allclose(outcome.logits, trace.logits, atol=1e-4)
    cost = ReplayCost(recorded, price, chosen)
    assert cost.speedups(outcome) == pytest.approx(speedups(trace, price), rel=1e-9)


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_the_full_model_is_the_largest_alone(three: Cascade) -> None:
    rows, seen = texts(), counted(three)
    trace = three.run(rows, plan(three, "fixed", exit=3))
    assert [len(calls) for calls in seen] == [0, 0, 1]
    alone = three.models[2].run(own(rows, 2), three.whole[2])
    assert torch.equal(trace.logits, alone.logits)
    assert speedups(trace, prices(three)) == {"layers": 1.0, "flops": 1.0}
    assert flops(trace.work, prices(three)) == flops(alone.work, prices(three.models[2]))
    assert full_work(trace.work, ROWS, start=6) == trace.work


def test_work_adds_up_over_the_models_that_a_row_has_seen(three: Cascade) -> None:
    """So that a cascade in which nobody leaves early is slower than its largest model."""
    rows, price = texts(), prices(three)
    trace = three.run(rows, off("cascade", REGISTRY.policy("cascade"), three.shape))
    assert trace.histogram(3) == [0, 0, ROWS]
    assert speedups(trace, price)["layers"] == 6 / 12
    each = [
        flops(model.run(own(rows, number), three.whole[number]).work, prices(model))
        for number, model in enumerate(three.models)
    ]
    assert flops(trace.work, price) == sum(each)
    assert speedups(trace, price)["flops"] == pytest.approx(each[2] / sum(each))


def test_limits_leave_out_models_that_may_not_answer(three: Cascade) -> None:
    seen = counted(three)
    trace = three.run(texts(), plan(three, limits=Limits(min_exit=2, max_exit=2)))
    assert [len(calls) for calls in seen] == [0, 1, 0]
    assert set(trace.exit.tolist()) == {2}
    assert set(trace.layers.tolist()) == {4}


def test_a_label_that_only_the_largest_may_give_is_given_by_no_other(three: Cascade) -> None:
    free, held = (three.run(texts(), plan(three, limits=limits)) for limits in (Limits(), Limits(never_early=(1,))))
    early = (free.exit < 3) & (free.logits.argmax(-1) == 1)
    assert early.any()
    assert set(held.exit[held.logits.argmax(-1) == 1].tolist()) == {3}


def test_predicted_time_is_that_of_the_models_that_run(three: Cascade) -> None:
    def line(fixed: float, per_token: float) -> Line:
        return Line(np.array([1.0, 4.0]), np.array([fixed, fixed]), np.array([per_token, per_token]))

    times = [
        LayerTimes(embed=line(size, 0), layer=line(0, size), exit=line(1000, 0), last=line(0.25, 0))
        for size in (1.0, 10.0, 100.0)
    ]
    rows = texts(4)
    recorded = record(three, [rows])
    small, large = (int(own(rows, number)["attention_mask"].sum()) for number in (0, 2))
    last = int(own(rows, 2)["attention_mask"][3].sum())
    clock, reading = PredictedTime(recorded, times, batch_size=4), plan(three, "entropy")
    first, middle, full = 1.25 + 2 * small, 10.25 + 4 * 10 * large, 100.25 + 6 * 100 * large
    assert clock.full == pytest.approx(full)

    def seconds(exits: list[int], under: Schedule = reading) -> float:
        return clock.seconds(Outcome(recorded.logits[-1], torch.tensor(exits)), under)

    assert seconds([3, 3, 3, 3]) == pytest.approx(first + middle + full)
    assert seconds([1, 1, 1, 1]) == pytest.approx(first)
    assert seconds([1, 1, 1, 2]) == pytest.approx(first + 10.25 + 4 * 10 * last)
    unread = plan(three, "fixed", exit=3)
    assert seconds([1, 1, 1, 3], unread) < seconds([1, 1, 1, 3])
    assert seconds([3, 3, 3, 3], unread) == pytest.approx(full)
    assert seconds([3, 3, 3, 3], plan(three, "entropy", threshold=[0.5, "off"])) == pytest.approx(first + full)


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["learned", "skip-gate"])
def test_policies_that_need_states_in_common_are_refused_with_the_reason(three: Cascade, name: str) -> None:
    with pytest.raises(UsageError, match=f"policy '{name}' does not work on a cascade: it .*share none"):
        plan(three, name)


def test_every_other_policy_for_texts_works(three: Cascade) -> None:
    for name in REGISTRY.names("policy"):
        policy: type[ExitPolicy] = REGISTRY.policy(name)
        if policy.refuses(three.shape) or name in ("learned", "skip-gate"):
            continue
        assert three.run(texts(4), plan(three, name)).exit.shape == (4,)
        assert name in {working for working, _ in WORKING}, f"{name} is tested above"


def test_a_row_leaves_when_its_probability_is_above_the_threshold_and_not_at_it() -> None:
    rule = REGISTRY.policy("cascade")
    sure = torch.tensor([[0.0, 0.0], [0.1, 0.0]])
    assert rule(threshold=0.5).decide(evidence(sure), {})[0].tolist() == [False, True]
