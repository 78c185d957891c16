"""Extract-then-Distill: a student that starts as a piece of its teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from exitkit.distillation.layer_map import evenly
from exitkit.engine.encoders.base import Axis, Encoder, Part
from exitkit.engine.heads import ExitHead
from exitkit.engine.loop import full_pass
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Batch, Stream
from exitkit.tasks import Task


@dataclass(frozen=True)
class Size:
    """What a model is made of."""

    layers: int
    width: int  # d
    heads: int  # H; 0 in a family without attention
    inner: int  # units of the feed-forward; 0 in a family without

    def as_dict(self) -> dict[str, int]:
        """Plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Importance:
    """How much the loss depends on each part: |∂L/∂ξ| of a mask ξ on it, added up over batches."""

    hidden: Tensor  # [d], one mask along the whole residual stream
    heads: tuple[Tensor, ...]  # per layer [H]
    inner: tuple[Tensor, ...]  # per layer [units]


@dataclass(frozen=True)
class Kept:
    """What a student takes: ascending numbers, counted from 0."""

    layers: tuple[int, ...]  # of the teacher, for each of the student's
    hidden: Tensor  # [d'], the same in embeddings, every layer and every head
    heads: tuple[Tensor, ...]  # per layer of the student [H']
    inner: tuple[Tensor, ...]  # per layer of the student


def size_of(config: PreTrainedConfig, encoder: type[Encoder]) -> Size:
    """The size that a config describes."""
    return Size(
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        heads=int(getattr(config, "num_attention_heads", 0)),
        inner=int(getattr(config, encoder.inner_name, 0)),
    )


def why_not(student: Size, teacher: Size) -> str | None:
    """Why no student of this size can be cut out of a teacher, as a sentence; None when one can.

    Whole heads are kept, since attention is scaled by the size of a head.
    """
    per_head = teacher.width // teacher.heads
    parts = {"layers": "layers", "width": "features", "heads": "attention heads", "inner": "feed-forward units"}
    for name, what in parts.items():
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours > theirs:
            return f"the teacher has {theirs} {what}, fewer than {ours}, and extraction can only leave out."
    if student.width != student.heads * per_head:
        return (
            f"width {student.width} with {student.heads} heads does not consist of the teacher's heads of {per_head} "
            f"features; use a multiple of {per_head} up to {teacher.width}."
        )
    return None


def misfit(student: ExitModel, teacher: ExitModel) -> str | None:
    """Why the weights of a model of a possible size are no pieces of the teacher's, as a sentence; None when they are.

    Vocabulary, positions and labels are never cut.
    """
    ours, theirs = student.encoder.anatomy().rest, teacher.encoder.anatomy().rest
    if len(ours) != len(theirs):
        return (
            f"at width {student.shape.width} its embeddings would be as wide as its layers, which the teacher's are "
            "not; use another width."
        )
    for part, source in zip(ours, theirs, strict=True):
        for name, value in part.module.named_parameters(recurse=False):
            given = getattr(source.module, name).shape
            for axis, counted in enumerate((part.rows, part.columns)[: value.dim()]):
                if counted is None and value.shape[axis] != given[axis]:
                    return (
                        f"a weight is {list(value.shape)} where the teacher has {list(given)}; vocabulary, positions "
                        "and labels must be the teacher's."
                    )
    return None


def all_of(student: Size, teacher: Size) -> bool:
    """Whether nothing is left out but whole layers."""
    return (student.width, student.heads, student.inner) == (teacher.width, teacher.heads, teacher.inner)


def importance(model: ExitModel, batches: Iterable[tuple[Batch, Tensor | None]], task: Task) -> Importance:
    """How important each part of a model is to its loss on some rows (ETD-Impt, 2104.11928; DynaBERT's scores).

    A head's score is |∂L/∂ξ| of a mask on its context, which equals the sum over its columns of the output matrix of
    w·∂w. A feed-forward unit's is |Σ w1·∂w1 + b1·∂b1| + |Σ w2·∂w2|, as DynaBERT (2004.04037, released code) has it. A
    feature of the residual stream has one mask for the embeddings' output and that of every layer. Gradients are
    cleared between batches; DynaBERT's released code never does, so that early batches count many times there.

    Rows without labels are judged by the model's own answers; in regression by the answer itself.

    Args:
        model: in evaluation mode; its weights need no gradient before or after.
        batches: with labels [U] or [U, C], or None.
        task: of the labels.
    """
    anatomy, parameters = model.encoder.anatomy(), list(model.stock.parameters())
    heads = int(model.stock.config.num_attention_heads)
    hidden = torch.zeros(model.shape.width, device=model.device)
    of_heads = [torch.zeros(heads, device=model.device) for _ in anatomy.blocks]
    of_inner: list[Tensor] = [torch.zeros(_inner(block), device=model.device) for block in anatomy.blocks]
    for parameter in parameters:
        parameter.requires_grad_()
    for batch, labels in batches:
        model.zero_grad(set_to_none=True)
        mask = torch.ones_like(hidden, requires_grad=True)

        def embedded(stream: Stream, mask: Tensor = mask) -> Stream:
            return stream.carrying(stream.hidden * mask)

        def between(index: int, before: Stream, after: Stream, mask: Tensor = mask) -> Stream:
            return after.carrying(after.hidden * mask)

        logits = full_pass(model, batch, embedded, between).logits[-1]
        _judgement(logits, labels, task).backward()  # type: ignore[no-untyped-call]
        assert mask.grad is not None
        hidden += mask.grad.abs()
        for number, block in enumerate(anatomy.blocks):
            of_heads[number] += _of_heads(block, heads)
            of_inner[number] += _of_inner(block)
    model.zero_grad(set_to_none=True)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return Importance(hidden.cpu(), tuple(one.cpu() for one in of_heads), tuple(one.cpu() for one in of_inner))


def _judgement(logits: Tensor, labels: Tensor | None, task: Task) -> Tensor:
    if labels is None and task.kind == "regression":
        return logits.mean()
    if labels is None:
        labels = (logits > 0).long() if task.kind == "multi-label" else logits.argmax(dim=-1)
    each = task.loss(logits, labels)
    return each.sum() / max(len(each), 1)  # sentences may be without words, a whole batch of them too


def _of_heads(block: Iterable[Part], heads: int) -> Tensor:
    """[H]"""
    (out,) = (part.module for part in block if part.columns == "heads")
    by_column = _weighted(out).sum(dim=0)  # [H · D]
    return by_column.view(heads, -1).sum(dim=1).abs()


def _of_inner(block: Iterable[Part]) -> Tensor:
    """[units]"""
    parts = list(block)
    (into,) = (part.module for part in parts if part.rows == "inner")
    (out,) = (part.module for part in parts if part.columns == "inner")
    bias = into.bias
    assert isinstance(bias, Tensor)
    assert bias.grad is not None
    return (_weighted(into).sum(dim=1) + bias.detach() * bias.grad).abs() + _weighted(out).sum(dim=0).abs()


def _weighted(linear: nn.Module) -> Tensor:
    """w·∂w, as the weight."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    assert weight.grad is not None
    return weight.detach() * weight.grad


def _inner(block: Iterable[Part]) -> int:
    (into,) = (part.module for part in block if part.rows == "inner")
    assert isinstance(into.weight, Tensor)
    return int(into.weight.shape[0])


def choose(student: Size, teacher: Size, scores: Importance | None, seed: int) -> Kept:
    """What the student takes: evenly spread layers, and of the rest the most important (`scores`) or a random choice.

    Everything comes in ascending order, so that a student of the teacher's size is the teacher.
    """
    random = torch.Generator().manual_seed(seed)
    layers = tuple(layer - 1 for layer in evenly(student.layers, teacher.layers))

    def pick(count: int, of: int, score: Tensor | None) -> Tensor:
        if count == of:
            return torch.arange(of)
        chosen = torch.randperm(of, generator=random)[:count] if score is None else score.topk(count).indices
        return chosen.sort().values

    of_hidden = None if scores is None else scores.hidden
    of_heads = [None if scores is None else scores.heads[layer] for layer in layers]
    of_inner = [None if scores is None else scores.inner[layer] for layer in layers]

    return Kept(
        layers=layers,
        hidden=pick(student.width, teacher.width, of_hidden),
        heads=tuple(pick(student.heads, teacher.heads, score) for score in of_heads),
        inner=tuple(pick(student.inner, teacher.inner, score) for score in of_inner),
    )


@torch.no_grad()
def extract(student: ExitModel, teacher: ExitModel, kept: Kept) -> None:
    """Write pieces of the teacher's weights into a student of the same family.

    Exit heads come along where the teacher has one at the layer that an exit of the student comes from, with the same
    pooling; others stay as they are.
    """
    per_head = teacher.shape.width // int(teacher.stock.config.num_attention_heads)
    ours, theirs = student.encoder.anatomy(), teacher.encoder.anatomy()
    for part, source in zip(ours.rest, theirs.rest, strict=True):
        _copy(part, source, {"hidden": kept.hidden})
    for number, block in enumerate(ours.blocks):
        heads = (kept.heads[number][:, None] * per_head + torch.arange(per_head)).flatten()
        index: dict[Axis, Tensor] = {"hidden": kept.hidden, "heads": heads, "inner": kept.inner[number]}
        for part, source in zip(block, theirs.blocks[kept.layers[number]], strict=True):
            _copy(part, source, index)
    if student.pooling != teacher.pooling:
        return
    given = dict(zip(teacher.exits, teacher.exit_heads, strict=False))
    for layer, head in zip(student.exits, student.exit_heads, strict=False):
        source_head = given.get(kept.layers[layer - 1] + 1)
        if source_head is not None:
            _copy_head(head, source_head, kept.hidden)


def _copy_head(head: ExitHead, source: ExitHead, hidden: Tensor) -> None:
    read = torch.cat([hidden, source.out.in_features + hidden]) if source.pooling == "mix" else hidden
    head.dense.weight.copy_(source.dense.weight[hidden][:, read])
    head.dense.bias.copy_(source.dense.bias[hidden])
    head.out.weight.copy_(source.out.weight[:, hidden])
    head.out.bias.copy_(source.out.bias)


def _copy(part: Part, source: Part, index: Mapping[Axis, Tensor]) -> None:
    for name, target in part.module.named_parameters(recurse=False):
        piece = getattr(source.module, name)
        if part.rows is not None:
            piece = piece[index[part.rows]]
        if part.columns is not None and piece.dim() > 1:
            piece = piece[:, index[part.columns]]
        target.copy_(piece)
