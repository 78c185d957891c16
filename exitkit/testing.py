"""For authors of plugins: a check of the whole contract for each kind, such as `check_policy(Margin)`.

`evidence(...)` builds what a policy's `decide` sees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import yaml
from torch import Tensor

from exitkit.engine import contract
from exitkit.engine.encoders.bert import BertEncoder
from exitkit.engine.loop import run
from exitkit.engine.model import ExitModel
from exitkit.engine.replay import Outcome, Recording, record, replay
from exitkit.engine.schedule import Schedule, knob_range, off, rewrites, schedule
from exitkit.engine.trace import Trace
from exitkit.policy import Decision, Evidence, ExitPolicy, Knob, Shape, State, knobs
from exitkit.tasks import TASKS
from exitkit.training.parity import check_family as check_family
from exitkit.training.trials import check_distiller as check_distiller
from exitkit.training.trials import check_recipe as check_recipe

SHAPE = Shape(exits=6, layers=6, labels=3, width=8, task="classification")
SHAPES = (
    SHAPE,
    replace(SHAPE, task="multi-label"),
    replace(SHAPE, task="regression", labels=1, scale=2.0),
    replace(SHAPE, task="tagging"),
)
SENTENCE = 5  # words of a scripted sentence


def evidence(logits: Tensor, exit: int = 1, exits: int = 6, **fields: Any) -> Evidence:
    """What a policy sees after one exit of a model with as many layers as exits: every unit live, fresh and alone.

    Args:
        logits: [U, C].
        exit: number of the exit, from 1.
        exits: E.
        fields: any other field of Evidence.
    """
    units, labels = logits.shape
    everyone = torch.ones(units, dtype=torch.bool)
    defaults: dict[str, Any] = {
        "layer": exit,
        "layers": exits,
        "labels": labels,
        "task": "classification",
        "live": everyone,
        "fresh": everyone,
        "sequence": torch.arange(units),
        "position": torch.zeros(units, dtype=torch.long),
    }
    return Evidence(exit=exit, exits=exits, logits=logits, **{**defaults, **fields})


def check_policy(policy: type[ExitPolicy], name: str = "policy", settings: Mapping[str, Any] | None = None) -> None:
    """Test the contract of a policy on every task that it does not refuse.

    Args:
        policy: the class.
        name: what it is called in messages.
        settings: values for knobs that are to stay as they are.

    Raises:
        AssertionError: a rule is broken; the message says which.
        PluginError: a rule that every run checks is broken: shapes of answers, what is given is changed in place.
    """
    shapes = [shape for shape in SHAPES if policy.refuses(shape) is None]
    assert shapes, f"{name}: refuses every task"
    for shape in shapes:
        named = {knob.name for knob in knobs(policy)} - {knob.name for knob in knobs(policy, shape.task)}
        held = {key: value for key, value in (settings or {}).items() if key not in named}
        for plan in _schedules(policy, name, held, shape):
            _check_forms(plan, shape)
            _check_purity(plan, shape)
            _check_batch_mates(plan, shape)
            _check_yaml(plan, policy, shape)
        _check_knobs(policy, name, held, shape)
        _check_off(policy, name, shape)
        if policy.rewrites:
            _check_gated_runs(policy, name, held, shape)
        else:
            _check_runs(policy, name, held, shape)


def scripted(units: int = 40, shape: Shape = SHAPE, seed: int = 0) -> Tensor:
    """Random answers of all exits [E, U, C] that grow surer with depth and sometimes change their mind."""
    random = torch.Generator().manual_seed(seed)
    meant = torch.randint(shape.labels, (units,), generator=random)
    logits = torch.randn(shape.exits, units, shape.labels, generator=random)
    depth = torch.arange(1, shape.exits + 1)[:, None] / shape.exits
    ease = 4 * torch.rand(units, generator=random)
    logits[:, torch.arange(units), meant] += depth * ease
    return logits


def recording(logits: Tensor, shape: Shape = SHAPE) -> Recording:
    """Scripted answers [E, U, C] as a recording of sequences of 10 tokens, in tagging of sentences of 5 words."""
    units = logits.shape[1]
    layers = tuple(range(1, shape.exits + 1))
    if shape.task != "tagging":
        return Recording(logits, torch.full((1, units), 10), shape, layers)
    sequence, place = _sentences(units)
    lengths = torch.full((1, -(-units // SENTENCE)), 10)
    return Recording(logits, lengths, shape, layers, sequence=sequence, place=place, tokens=torch.ones_like(sequence))


def _sentences(units: int) -> tuple[Tensor, Tensor]:
    """Sentence and place of scripted words."""
    number = torch.arange(units)
    return number // SENTENCE, number % SENTENCE


def tiny_model(layers: int = 6, labels: int = 3, seed: int = 0, task: str = "classification") -> ExitModel:
    """A random BERT classifier with an exit at every layer, in evaluation mode, whose exits disagree at times."""
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    stock = BertForTokenClassification if task == "tagging" else BertForSequenceClassification
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=labels,
        problem_type=TASKS[task].problem_type,
    )
    model = ExitModel(stock(config), BertEncoder, range(1, layers + 1), "mean").eval()
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if not isinstance(module, torch.nn.LayerNorm):
                    parameter.normal_(std=1.0 if isinstance(module, torch.nn.Embedding) else 0.3)
        for name, parameter in model.heads.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(2.0)
    return model


def tiny_batch(rows: int = 24, seed: int = 0, task: str = "classification") -> dict[str, Tensor]:
    """Random token ids of mixed lengths, padded, for `tiny_model`; in tagging with words of one or two pieces."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 20, (rows,), generator=random)
    mask = (torch.arange(20) < lengths[:, None]).long()
    ids = torch.randint(5, 50, (rows, 20), generator=random) * mask
    batch = {"input_ids": ids, "attention_mask": mask}
    if task == "tagging":
        first = torch.rand(rows, 20, generator=random) < 0.7
        inside = (torch.arange(20) > 0) & (torch.arange(20) < lengths[:, None] - 1)  # between [CLS] and [SEP]
        batch["words"] = torch.where(inside, (first & inside).cumsum(dim=1), -1)
    return batch


def _schedules(policy: type[ExitPolicy], name: str, held: dict[str, Any], shape: Shape) -> Iterator[Schedule]:
    """The policy at its defaults and at low, middle and high values of every free knob."""
    free = [knob for knob in knobs(policy, shape.task) if knob.name not in held]
    yield schedule(name, policy, held, shape)
    for knob in free:
        for value in _values(knob, shape):
            yield schedule(name, policy, {**held, knob.name: value}, shape)


def _values(knob: Knob, shape: Shape) -> list[Any]:
    if knob.choices is not None:
        return list(knob.choices)
    low, high = knob_range(knob, shape)
    if not math.isfinite(high - low):
        return [knob.default]
    steps = [low + (high - low) * share for share in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)]
    return sorted({knob.kind(step) for step in steps})


def _walk(plan: Schedule, logits: Tensor, shape: Shape) -> Iterator[tuple[Evidence, State, Decision, State]]:
    """Every decision of a policy over scripted exits, without anybody leaving."""
    state = contract.start(plan.name, plan.first, logits.shape[1], logits.device)
    for exit in range(1, logits.shape[0]):
        seen = _seen(plan, logits, exit, shape)
        decision, after = contract.decide(plan.name, plan.steps[exit - 1], seen, state)
        yield seen, state, decision, after
        state = after


def _seen(plan: Schedule, logits: Tensor, exit: int, shape: Shape) -> Evidence:
    """Evidence with all that the policy reads, made from its own row of the logits [E, U, C] alone."""
    policy = type(plan.first)
    more: dict[str, Any] = {"task": shape.task, "scale": shape.scale}
    if shape.task == "tagging":
        more["sequence"], more["position"] = _sentences(logits.shape[1])
    if "key" in policy.reads:
        more["key"] = _keys(logits)
    if "probe" in policy.reads:
        more["probe"] = _probed(policy, logits, shape)[exit - 1]
    return evidence(logits[exit - 1], exit, logits.shape[0], **more)


def _keys(logits: Tensor) -> Tensor:
    return (logits[-1].float().nan_to_num(posinf=9, neginf=-9).sum(dim=-1) * 1e6).long() & (2**31 - 1)


def _probed(policy: type[ExitPolicy], logits: Tensor, shape: Shape) -> Tensor:
    """What a random probe says [E, U, p] where the features of an exit are its logits, filled up with zeros."""
    probe = _random_probe(policy, shape)
    assert probe is not None, f"{policy.__name__} reads a probe and has none"
    features = logits.float().nan_to_num(posinf=9, neginf=-9)
    with torch.no_grad():
        said: Tensor = probe(torch.nn.functional.pad(features, (0, shape.width - shape.labels)))
    return said


def _recorded(name: str, policy: type[ExitPolicy], logits: Tensor, shape: Shape) -> Recording:
    """A recording with all that the policy reads."""
    probes = {name: _probed(policy, logits[:-1], shape)} if "probe" in policy.reads else {}
    return replace(recording(logits, shape), probes=probes, keys=_keys(logits))


def _check_forms(plan: Schedule, shape: Shape) -> None:
    """Shapes and dtypes, for no unit, one unit, infinite and bf16 answers; `contract` does the looking."""
    for units in (0, 1, 5):
        for dtype in (torch.float32, torch.bfloat16):
            list(_walk(plan, scripted(units, shape).to(dtype), shape))
    for extreme in (math.inf, -math.inf):
        logits = scripted(4, shape)
        logits[:, :, 0] = extreme
        list(_walk(plan, logits, shape))


def _check_purity(plan: Schedule, shape: Shape) -> None:
    """Copies are taken before the first call: a policy that overwrites with the same value twice must be seen too."""
    logits = scripted(shape=shape)
    state = contract.start(plan.name, plan.first, logits.shape[1], logits.device)
    for exit in range(1, logits.shape[0]):
        seen = _seen(plan, logits.clone(), exit, shape)
        kept = {key: rows.clone() for key, rows in state.items()}
        step = plan.steps[exit - 1]
        decision, after = contract.decide(plan.name, step, seen, state)
        assert torch.equal(seen.logits, logits[exit - 1]), f"{plan.name}: decide changes the evidence"
        assert all(torch.equal(state[key], kept[key]) for key in kept), f"{plan.name}: decide changes its state"
        again, after_again = contract.decide(plan.name, step, seen, state)
        assert torch.equal(again.leave, decision.leave), f"{plan.name}: the same evidence gives another decision"
        assert all(torch.equal(after[key], after_again[key]) for key in after), (
            f"{plan.name}: the same evidence gives another state"
        )
        state = after


def _check_batch_mates(plan: Schedule, shape: Shape) -> None:
    """Permuting and splitting the batch changes nobody's decision or state."""
    logits = scripted(shape=shape)
    mates = SENTENCE if shape.task == "tagging" else 1  # units that may look at each other
    order = torch.randperm(logits.shape[1] // mates, generator=torch.Generator().manual_seed(1))
    order = (order[:, None] * mates + torch.arange(mates)).flatten()
    parts = {"another order": order, "half of the batch": torch.arange(logits.shape[1] // 2), "one": order[:mates]}
    for what, rows in parts.items():
        both = zip(_walk(plan, logits, shape), _walk(plan, logits[:, rows], shape), strict=True)
        for (_, _, whole, state), (_, _, part, part_state) in both:
            assert torch.equal(whole.leave[rows], part.leave), f"{plan.name}: {what} changes a unit's decision"
            assert all(torch.equal(state[key][rows], part_state[key]) for key in state), (
                f"{plan.name}: {what} changes a unit's state"
            )


def _check_yaml(plan: Schedule, policy: type[ExitPolicy], shape: Shape) -> None:
    settings = yaml.safe_load(yaml.safe_dump(plan.settings))
    again = schedule(plan.name, policy, settings, shape)
    assert again == plan, f"{plan.name}: settings {plan.settings} do not survive YAML"


def _check_knobs(policy: type[ExitPolicy], name: str, held: dict[str, Any], shape: Shape) -> None:
    """A turned knob moves exits the way that it says."""
    answers = _recorded(name, policy, scripted(200, shape), shape)
    for knob in knobs(policy, shape.task):
        if knob.name in held or knob.choices is not None or knob.raising == "mixed":
            continue
        plans = [schedule(name, policy, {**held, knob.name: value}, shape) for value in _values(knob, shape)]
        taken = [replay(answers, plan).exit for plan in plans]
        for lower, higher in itertools.pairwise(taken):
            fits = (higher <= lower).all() if knob.raising == "earlier" else (higher >= lower).all()
            assert fits, f"{name}: raising '{knob.name}' must make exits {knob.raising}, and does not always"


def _check_off(policy: type[ExitPolicy], name: str, shape: Shape) -> None:
    if not any(knob.off is not None for knob in knobs(policy, shape.task)):
        return
    plan = off(name, policy, shape)
    sure = torch.zeros(shape.exits, 4, shape.labels)
    sure[:, 0, 0], sure[:, 1, 0], sure[:, 2, 1:] = 1e4, 30.0, -math.inf
    for logits in (sure, scripted(200, shape)):
        taken = replay(_recorded(name, policy, logits, shape), plan).exit
        assert (taken == shape.exits).all(), f"{name}: a unit leaves early although the policy is off"


def _check_gated_runs(policy: type[ExitPolicy], name: str, held: dict[str, Any], shape: Shape) -> None:
    """A policy with gates gives the same at any batch size, and says what its gates cost."""
    model, rows = tiny_model(labels=shape.labels, task=shape.task), tiny_batch(task=shape.task)
    called: list[None] = []
    probe = _random_probe(policy, model.shape)
    if probe is not None:
        model.probes[name] = probe
        for module in probe.modules():
            module.register_forward_hook(lambda *_: called.append(None))
    for plan in _schedules(policy, name, held, model.shape):
        called.clear()
        traces = [Trace.join([run(model, batch, plan) for batch in _batches(rows, size)]) for size in (24, 7, 1)]
        for trace in traces[1:]:
            same = torch.equal(trace.exit, traces[0].exit) and torch.equal(trace.layers, traces[0].layers)
            assert same, f"{name}: {plan.settings} runs otherwise in batches of another size"
            assert torch.allclose(trace.logits, traces[0].logits, atol=1e-4), f"{name}: batch mates change an answer"
        if "probe" not in policy.reads:
            assert bool(called) == (traces[0].work.probes > 0), (
                f"{name}: gate_cost must say what asking the probe costs, and 0 where it is not asked"
            )
    if any(knob.off is not None for knob in knobs(policy, shape.task)):
        trace = run(model, rows, off(name, policy, model.shape))
        whole = (trace.exit == model.shape.exits) & (trace.layers == model.shape.layers)
        assert whole.all(), f"{name}: a layer is skipped or a unit leaves early although the policy is off"


def _random_probe(policy: type[ExitPolicy], shape: Shape) -> torch.nn.Module | None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = policy.probe(shape)
    return None if probe is None else probe.eval()


def _batches(rows: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, rows["input_ids"].shape[0], size):
        yield {key: value[start : start + size] for key, value in rows.items()}


def _check_runs(policy: type[ExitPolicy], name: str, held: dict[str, Any], shape: Shape) -> None:
    """Live runs in batches of any size agree, with each other and, where a replay is exact, with that."""
    model, rows = tiny_model(labels=shape.labels, task=shape.task), tiny_batch(task=shape.task)
    probe = policy.probe(model.shape) if "probe" in policy.reads else None
    if probe is not None:
        model.probes[name] = probe.eval()
    recorded = record(model, [rows], model.probes)
    for plan in _schedules(policy, name, held, model.shape):
        exact = not rewrites(policy, model.task)
        outcome: Trace | Outcome = replay(recorded, plan) if exact else run(model, rows, plan)
        for size in (1, 7, 24):
            trace = Trace.join([run(model, batch, plan) for batch in _batches(rows, size)])
            where = "live than replayed" if exact else f"in batches of {size}"
            assert torch.equal(trace.exit, outcome.exit), f"{name}: {plan.settings} exits otherwise {where}"
            assert torch.allclose(trace.logits, outcome.logits, atol=1e-4), f"{name}: answers differ {where}"
