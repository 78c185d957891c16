"""Tries recipes and distillation methods on tiny models: a step of every phase, and what must hold of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import yaml
from torch import Tensor

from exitkit.distiller import Distiller, Lesson, Reads
from exitkit.engine.encoders.bert import BertEncoder
from exitkit.engine.internals import Internals
from exitkit.engine.loop import full_pass
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Batch, units_of
from exitkit.errors import UsageError
from exitkit.plugins import Registry, installed
from exitkit.policy import Shape
from exitkit.recipe import EveryExit, Judges, Phase, Recipe
from exitkit.tasks import TASKS, Task, task
from exitkit.training.parity import lengths, random_rows, random_stock, small_config
from exitkit.training.train import attach_probes

ROWS = (9, 4, 4, 12)
"""Tokens of the rows of the batch that is learned from."""


def check_recipe(recipe: type[Recipe], name: str = "recipe", options: Mapping[str, Any] | None = None) -> None:
    """Test the contract of a recipe on every task that it does not refuse, by a step of every phase.

    Args:
        recipe: the class.
        name: what it is registered as; probes of policies that name it in `trained_by` are there.
        options: values of options that are not at their default.

    Raises:
        AssertionError: a rule is broken; the message says which.
    """
    made = _made(recipe, name, options)
    tried = [kind for kind in TASKS if _tries(made, name, task(kind, _labels(kind)), None)]
    assert tried, f"{name}: refuses every task"


def check_distiller(method: type[Distiller], name: str = "method", options: Mapping[str, Any] | None = None) -> None:
    """Test the contract of a distillation method, as `check_recipe`, with a random teacher of twice the depth.

    Labels are there, missing, and there for some rows only.
    """
    made = _made(method, name, options)
    tried = []
    for kind in TASKS:
        teacher = _model(task(kind, _labels(kind)), layers=4, seed=1)
        refused = method.refuses(teacher.shape)
        assert refused is None or isinstance(refused, str), (
            f"{name}: refuses must give a reason or None, not {refused!r}"
        )
        if refused is None and _tries(made, name, task(kind, _labels(kind)), teacher):
            tried.append(kind)
    assert tried, f"{name}: refuses every task"


@cache
def _installed() -> Registry:
    """What is installed; looked up once, since every step begins with a fresh model."""
    return installed()


def _labels(kind: str) -> tuple[str, ...]:
    return () if kind == "regression" else tuple("abc")


def _made(recipe: type[Recipe], name: str, options: Mapping[str, Any] | None) -> Recipe:
    """The recipe with its options, which are plain data and survive YAML."""
    parameters = getattr(recipe, "__dataclass_params__", None)
    assert parameters is not None and parameters.frozen, f"{name}: must be a frozen dataclass"  # noqa: PT018
    made = recipe(**(options or {}))
    told = dataclasses.asdict(made)  # type: ignore[call-overload]  # a dataclass, as was just seen
    again = recipe(**yaml.safe_load(yaml.safe_dump(told)))
    assert again == made, f"{name}: options {told} do not survive YAML"
    return made


def _model(task: Task, layers: int, seed: int) -> ExitModel:
    """A tiny random BERT for a task, with an exit at every layer."""
    config = small_config("bert")
    config.num_hidden_layers, config.num_labels, config.problem_type = layers, task.outputs, task.problem_type
    tags = task.kind == "tagging"
    stock = random_stock(config, tags, seed, torch.float32)
    return ExitModel(stock, BertEncoder, range(1, layers + 1), "cls" if tags else "mean")


def _tries(made: Recipe, name: str, task: Task, teacher: ExitModel | None) -> bool:
    """Whether a recipe takes on a task; if so it is tried."""
    try:
        model, phases = _begun(made, name, task, teacher)
    except UsageError:
        return False
    _check_phases(model, phases, name)
    for number, phase in enumerate(phases):
        first, again = (_alone(made, name, number, task, teacher) for _ in range(2))
        assert all(map(torch.equal, first, again)), (
            f"{name}: phase '{phase.name}' teaches something else when it is run again with the same seed"
        )
        if teacher is not None or phase.label_free:
            for labels in ("none", "some") if teacher is not None else ("none",):
                _step(made, name, phase, model, task, teacher, labels)
    return True


def _begun(made: Recipe, name: str, task: Task, teacher: ExitModel | None) -> tuple[ExitModel, Sequence[Phase]]:
    """A fresh model that the recipe has prepared, and its phases."""
    torch.manual_seed(0)
    model = _model(task, layers=4 if teacher is None else 2, seed=0)
    if teacher is None:
        attach_probes(model, name, _installed(), made.probes())
    elif isinstance(made, Distiller):
        for part, module in made.scaffold(model.shape, teacher.shape).items():
            model.scaffold[part] = module
    made.prepare(model)
    return model, made.phases(model, 2.0)


def _alone(made: Recipe, name: str, number: int, task: Task, teacher: ExitModel | None) -> list[Tensor]:
    """What a step of phase `number` makes of a fresh model."""
    model, phases = _begun(made, name, task, teacher)
    return _step(made, name, phases[number], model, task, teacher)


def _check_phases(model: ExitModel, phases: Sequence[Phase], name: str) -> None:
    names = [phase.name for phase in phases]
    assert names, f"{name}: has no phase"
    assert len(set(names)) == len(names), f"{name}: two phases have one name: {', '.join(names)}"
    known = {id(parameter) for parameter in model.parameters()}
    for phase in phases:
        learning = [parameter for group in phase.groups for parameter in group.parameters]
        assert learning, f"{name}: phase '{phase.name}' trains nothing"
        assert len({id(p) for p in learning}) == len(learning), f"{name}: phase '{phase.name}' has a parameter twice"
        assert {id(p) for p in learning} <= known, f"{name}: phase '{phase.name}' trains what is not the model's"
        assert phase.epochs > 0, f"{name}: phase '{phase.name}' has {phase.epochs} epochs"
        for group in phase.groups:
            assert group.learning_rate > 0, f"{name}: phase '{phase.name}' learns at rate {group.learning_rate}"


def _step(
    made: Recipe, name: str, phase: Phase, model: ExitModel, task: Task, teacher: ExitModel | None, labels: str = "all"
) -> list[Tensor]:
    """One optimiser step of a phase. Returns the weights that it trained."""
    where = f"{name}: phase '{phase.name}' on {task.kind}"
    learning = [parameter for group in phase.groups for parameter in group.parameters]
    trained = {id(parameter) for parameter in learning}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        parameter.grad = None
    model.train()
    torch.manual_seed(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen = _seen(made, phase, model, task, teacher, labels)
    kept = seen.logits.detach().clone()
    losses = made.losses(phase.name, seen)
    wrong = _wrong(losses)
    assert wrong is None, f"{where}: losses {wrong}"
    assert torch.equal(seen.logits.detach(), kept), f"{where}: losses change the logits that they see"
    total = made.combine(losses)
    assert isinstance(total, Tensor) and total.dim() == 0, f"{where}: combine must give a scalar tensor"  # noqa: PT018
    watched = made.watched(phase.name, seen)
    assert all(value.dim() == 0 for value in watched.values()), f"{where}: watched must give scalar tensors"
    if not total.requires_grad:
        assert labels != "all", f"{where}: no loss depends on anything that the phase trains"
        return []
    conflict = made.conflict(phase.name, model)
    if conflict is not None:
        unknown = conflict.anchor - losses.keys()
        assert not unknown, f"{where}: conflict names losses that are not there: {', '.join(sorted(unknown))}"
    total.backward()  # type: ignore[no-untyped-call]
    reached = [parameter for parameter in learning if parameter.grad is not None]
    assert reached, f"{where}: no loss depends on anything that the phase trains"
    assert all(bool(p.grad.isfinite().all()) for p in reached if p.grad is not None), (
        f"{where}: gradients are not finite"
    )
    torch.optim.SGD(reached, lr=1e-3).step()
    frozen = {key for key, p in model.named_parameters() if id(p) not in trained}
    moved = [key for key, value in model.state_dict().items() if key in frozen and not torch.equal(value, before[key])]
    assert not moved, f"{where}: changes weights that it does not train, such as {moved[0]}"
    return [parameter.detach().clone() for parameter in learning]


def _wrong(losses: object) -> str | None:
    """What is wrong with losses, as the rest of a sentence."""
    if not isinstance(losses, Mapping) or not losses:
        return f"must give a dict of scalar tensors, not {losses!r}"
    for key, value in losses.items():
        if not isinstance(value, Tensor) or value.dim() != 0:
            return f"must give a dict of scalar tensors; '{key}' is a {type(value).__name__}"
        if not bool(value.isfinite()):
            return f"must be finite; '{key}' is {float(value.detach())}"
    return None


def _seen(made: Recipe, phase: Phase, model: ExitModel, task: Task, teacher: ExitModel | None, which: str) -> EveryExit:
    """What the losses of a phase see of a batch of random rows with random labels."""
    rows = random_rows(model.stock, lengths(model.stock.config, ROWS))
    if task.kind == "tagging":
        mask = rows["attention_mask"]
        rows["words"] = torch.where(mask.bool(), torch.arange(mask.shape[1]).expand_as(mask) // 2, -1)
    units = len(units_of(rows).sequence)
    hooks: dict[str, Any] = {
        hook: partial(getattr(made, hook), phase.name, model, progress=0.5)
        for hook in ("between", "onward")
        if getattr(type(made), hook) is not getattr(Recipe, hook)
    }
    lesson = None
    if teacher is not None:
        assert isinstance(made, Distiller)
        reads = made.reads(phase.name, model.shape, teacher.shape)
        _check_layers(reads, model.shape, teacher.shape, phase.name)
        own = _notes(model, reads, student=True)
        said = full_pass(model, rows, own.embedded, own.between)
        lesson = _lesson(reads, own, teacher, rows)
    else:
        said = full_pass(model, rows, **hooks)
    random = torch.Generator().manual_seed(0)
    labels = None if which == "none" or (phase.label_free and teacher is None) else _random_labels(task, units, random)
    return EveryExit(
        logits=said.logits,
        labels=labels,
        layers=model.exits,
        task=task,
        features=said.features,
        step=1,  # an odd one: recipes that take turns use all exits
        model=model,
        notes=said.notes,
        live=said.live,
        labelled=torch.arange(units) % 2 == 0 if which == "some" else None,
        lesson=lesson,
        solved=torch.arange(units) % 2 == 0 if isinstance(made.judges(), Judges) else None,
    )


def _check_layers(reads: Reads, student: Shape, teacher: Shape, phase: str) -> None:
    """States are compared from place 0 on, which is what the first layer reads; all else from layer 1 on."""
    for first, pairs in ((0, reads.hidden), (1, (*reads.scores, *reads.vectors, *reads.pooled))):
        for pair in pairs:
            for layer, shape, who in zip(pair, (student, teacher), ("student", "teacher"), strict=True):
                assert first <= layer <= shape.layers, f"reads of phase '{phase}': the {who} has no layer {layer}"


def _random_labels(task: Task, units: int, random: torch.Generator) -> Tensor:
    if task.kind == "regression":
        return torch.randn(units, generator=random)
    if task.kind == "multi-label":
        return torch.randint(0, 2, (units, task.outputs), generator=random)
    return torch.randint(0, task.outputs, (units,), generator=random)


def _notes(model: ExitModel, reads: Reads, student: bool) -> Internals:
    """An empty record of what a method compares."""
    place = 0 if student else 1
    pairs = [reads.hidden, reads.scores, reads.vectors, reads.pooled]
    hidden, scores, vectors, pooled = ([pair[place] for pair in part] for part in pairs)
    return Internals(model.encoder, hidden, scores, vectors, pooled, None if student else reads.pooling)


@torch.no_grad()
def _asked(teacher: ExitModel, reads: Reads, rows: Batch) -> tuple[Tensor, Internals]:
    notes = _notes(teacher, reads, student=False)
    return full_pass(teacher.eval(), rows, notes.embedded, notes.between).logits[-1], notes


def _lesson(reads: Reads, own: Internals, teacher: ExitModel, rows: Batch) -> Lesson:
    """What a teacher says of a batch, beside what the student noted."""
    logits, theirs = _asked(teacher, reads, rows)
    lesson = Lesson(
        logits if reads.answers else None,
        pooled=tuple((own.of_units(a), theirs.of_units(b)) for a, b in reads.pooled),
    )
    return replace(
        lesson,
        hidden=tuple((own.states(a), theirs.states(b)) for a, b in reads.hidden),
        scores=tuple((own.attention(a), theirs.attention(b)) for a, b in reads.scores),
        vectors=tuple((own.attended(a), theirs.attended(b)) for a, b in reads.vectors),
        lengths=own.lengths,
    )
