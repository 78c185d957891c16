"""A student starts as a piece of its teacher: what is taken, that it fits together, and how important parts are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import batch, stock, with_exits
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from exitkit.distillation.extraction import (
    Importance,
    Kept,
    Size,
    choose,
    extract,
    importance,
    misfit,
    size_of,
    why_not,
)
from exitkit.engine.encoders.base import Axis, Part
from exitkit.engine.loop import every_exit, full_pass
from exitkit.engine.model import ExitModel
from exitkit.plugins import installed
from exitkit.tasks import Classification, MultiLabel, Regression

CUT = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "electra with narrow embeddings", "distilbert"]
TASK = Classification(("a", "b", "c"))
TEACHER = Size(4, 32, 4, 48)


def student_of(teacher: ExitModel, size: Size, exits: tuple[int, ...] | None = None) -> ExitModel:
    """A student with weights that are not the teacher's."""
    config = teacher.encoder.resized(size.layers, size.width, size.heads, size.inner)
    torch.manual_seed(5)
    fresh = AutoModelForSequenceClassification.from_config(config)
    encoder = installed().encoder(config.model_type)
    model = ExitModel(fresh, encoder, exits or range(1, size.layers + 1), "mean")
    return model.to(teacher.stock.dtype).eval()


def taken(size: Size, seed: int = 3) -> Kept:
    return choose(size, TEACHER, None, seed)


@pytest.mark.parametrize("family", CUT)
def test_a_student_of_the_teachers_size_is_the_teacher_bit_for_bit(family: str) -> None:
    teacher = with_exits(stock(family, dtype=torch.float32))
    student = student_of(teacher, TEACHER)
    rows = batch(teacher.stock)
    with torch.no_grad():
        assert not torch.equal(every_exit(student, rows), every_exit(teacher, rows))
        extract(student, teacher, choose(TEACHER, size_of(teacher.stock.config, type(teacher.encoder)), None, 3))
        assert torch.equal(every_exit(student, rows), every_exit(teacher, rows))
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("family", CUT)
def test_every_weight_of_a_family_is_named_once(family: str) -> None:
    teacher = with_exits(stock(family))
    anatomy = teacher.encoder.anatomy()
    named = [id(p) for part in (*anatomy.rest, *sum(anatomy.blocks, ())) for p in part.module.parameters()]
    assert sorted(named) == sorted(id(p) for p in teacher.stock.parameters())


@pytest.mark.parametrize("family", CUT)
@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_the_same_features_are_kept_along_the_whole_residual_stream(family: str, axis: str) -> None:
    """Every weight says which feature it belongs to; after extraction it still must."""
    teacher = with_exits(stock(family))

    def mark(parts: tuple[Part, ...]) -> None:
        for part in parts:
            if getattr(part, axis) != "hidden":
                continue
            for value in part.module.parameters(recurse=False):
                numbers = torch.arange(32.0, dtype=value.dtype)
                if axis == "rows":
                    value.data = numbers.view(-1, *[1] * (value.dim() - 1)).expand_as(value).clone()
                elif value.dim() > 1:
                    value.data = numbers.expand_as(value).clone()

    theirs = teacher.encoder.anatomy()
    mark((*theirs.rest, *sum(theirs.blocks, ())))
    size = Size(2, 24, 3, 24)
    student, kept = student_of(teacher, size), taken(size)
    extract(student, teacher, kept)
    ours = student.encoder.anatomy()
    checked = 0
    for part in (*ours.rest, *sum(ours.blocks, ())):
        if getattr(part, axis) != "hidden":
            continue
        for value in part.module.parameters(recurse=False):
            if axis == "columns" and value.dim() < 2:
                continue
            found = value if value.dim() == 1 else value[:, 0] if axis == "rows" else value[0]
            assert torch.equal(found.detach().long(), kept.hidden), type(part.module)
            checked += 1
    assert checked >= 8


def test_heads_come_whole_and_their_rows_and_columns_match() -> None:
    teacher = with_exits(stock("bert"))
    size = Size(2, 16, 2, 24)
    student, kept = student_of(teacher, size), taken(size)
    extract(student, teacher, kept)
    for number, layer in enumerate(kept.layers):
        ours, theirs = student.encoder.blocks[number], teacher.encoder.blocks[layer]
        dims = [8 * int(head) + place for head in kept.heads[number] for place in range(8)]
        query = theirs.attention.self.query.weight[dims][:, kept.hidden]
        assert torch.equal(ours.attention.self.query.weight, query)
        assert torch.equal(ours.attention.self.value.bias, theirs.attention.self.value.bias[dims])
        out = theirs.attention.output.dense.weight[kept.hidden][:, dims]
        assert torch.equal(ours.attention.output.dense.weight, out)
        inner = theirs.output.dense.weight[kept.hidden][:, kept.inner[number]]
        assert torch.equal(ours.output.dense.weight, inner)
        assert ours.attention.self.attention_head_size == theirs.attention.self.attention_head_size
    assert torch.equal(
        student.stock.bert.pooler.dense.weight, teacher.stock.bert.pooler.dense.weight[kept.hidden][:, kept.hidden]
    )


def test_exit_heads_come_from_the_layers_that_students_layers_come_from() -> None:
    teacher = with_exits(stock("bert"))
    size = Size(2, 16, 2, 24)
    student, kept = student_of(teacher, size), taken(size)
    extract(student, teacher, kept)
    assert kept.layers == (1, 3)
    (head,), source = student.exit_heads, teacher.exit_heads[1]
    assert torch.equal(head.dense.weight, source.dense.weight[kept.hidden][:, kept.hidden])
    assert torch.equal(head.out.weight, source.out.weight[:, kept.hidden])


def test_only_layers_are_left_out_of_a_shallow_student() -> None:
    teacher = with_exits(stock("bert"))
    student = student_of(teacher, Size(2, 32, 4, 48))
    extract(student, teacher, taken(Size(2, 32, 4, 48)))
    kept = [teacher.encoder.blocks[1], teacher.encoder.blocks[3]]
    for ours, theirs in zip(student.encoder.blocks, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_random_choice_follows_the_seed_and_is_in_order() -> None:
    size = Size(3, 16, 2, 24)
    first, again, other = taken(size, 1), taken(size, 1), taken(size, 2)
    assert torch.equal(first.hidden, again.hidden)
    assert not torch.equal(first.hidden, other.hidden)
    for part in (first.hidden, *first.heads, *first.inner):
        assert (part.diff() > 0).all()
    assert first.layers == (1, 2, 3)


def test_the_most_important_parts_are_taken_from_the_layer_that_is_taken() -> None:
    heads = tuple(torch.tensor([4.0, 3.0, 2.0, 1.0]).roll(layer) for layer in range(4))
    inner = tuple(torch.arange(48.0).roll(layer) for layer in range(4))
    scores = Importance(torch.arange(32.0).flip(0), heads, inner)
    kept = choose(Size(2, 16, 2, 2), TEACHER, scores, 0)
    assert kept.hidden.tolist() == list(range(16))
    assert [part.tolist() for part in kept.heads] == [[1, 2], [0, 3]]
    assert [part.tolist() for part in kept.inner] == [[0, 47], [1, 2]]


# --- importance


class Exact(Classification):
    """The loss in the precision of its logits."""

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none")


def slope(value: Callable[[float], Tensor]) -> float:
    step = 1e-5
    return float((value(1 + step) - value(1 - step)) / (2 * step))


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_importance_is_how_fast_the_loss_changes_with_a_mask(family: str) -> None:
    teacher = with_exits(stock(family))
    rows, labels = batch(teacher.stock, (6, 4)), torch.tensor([1, 0])
    found = importance(teacher, [(rows, labels)], Exact(("a", "b", "c")))
    parts = {part.columns or part.rows: part.module for part in teacher.encoder.anatomy().blocks[1]}
    out_of_heads = next(p.module for p in teacher.encoder.anatomy().blocks[1] if p.columns == "heads")

    @torch.no_grad()
    def loss(embedded=None, between=None) -> Tensor:
        return functional.cross_entropy(full_pass(teacher, rows, embedded, between).logits[-1], labels)

    def head_masked(factor: float) -> Tensor:
        columns = out_of_heads.weight.data[:, 8:16]
        kept = columns.clone()
        columns.mul_(factor)
        try:
            return loss()
        finally:
            columns.copy_(kept)

    def feature_masked(factor: float) -> Tensor:
        mask = torch.ones(32, dtype=torch.float64)
        mask[5] = factor
        return loss(
            lambda stream: stream.carrying(stream.hidden * mask),
            lambda index, before, after: after.carrying(after.hidden * mask),
        )

    def unit_masked(factor: float, into: bool) -> Tensor:
        (first,) = (p.module for p in teacher.encoder.anatomy().blocks[1] if p.rows == "inner")
        pieces = [first.weight.data[7], first.bias.data[7]] if into else [parts["inner"].weight.data[:, 7]]
        kept = [piece.clone() for piece in pieces]
        for piece in pieces:
            piece.mul_(factor)
        try:
            return loss()
        finally:
            for piece, before in zip(pieces, kept, strict=True):
                piece.copy_(before)

    assert found.heads[1][1].item() == pytest.approx(abs(slope(head_masked)), rel=1e-4)
    assert found.hidden[5].item() == pytest.approx(abs(slope(feature_masked)), rel=1e-4)
    by_hand = abs(slope(lambda f: unit_masked(f, True))) + abs(slope(lambda f: unit_masked(f, False)))
    assert found.inner[1][7].item() == pytest.approx(by_hand, rel=1e-4)


def test_batches_add_up_because_gradients_are_cleared_between_them() -> None:
    teacher = with_exits(stock("bert"))
    one, two = ((batch(teacher.stock, (6, 4), seed), torch.tensor([seed, 2])) for seed in (0, 1))
    both, first, second = (importance(teacher, given, TASK) for given in ([one, two], [one], [two]))
    assert torch.allclose(both.hidden, first.hidden + second.hidden)
    for name in ("heads", "inner"):
        for joint, a, b in zip(getattr(both, name), getattr(first, name), getattr(second, name), strict=True):
            assert torch.allclose(joint, a + b)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.stock.parameters())


@pytest.mark.parametrize("task", [TASK, MultiLabel(("a", "b", "c")), Regression()])
def test_rows_without_labels_are_judged_by_the_models_own_answers(task) -> None:
    teacher = with_exits(stock("bert"))
    if task.kind == "regression":
        teacher.stock.classifier = torch.nn.Linear(32, 1).double()
        teacher.heads = torch.nn.ModuleList()
        teacher = ExitModel(teacher.stock, type(teacher.encoder), [4], "mean").double().eval()
    found = importance(teacher, [(batch(teacher.stock, (6, 4)), None)], task)
    assert (found.hidden > 0).all()
    assert all((part > 0).all() for part in found.heads)


# --- what cannot be cut


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (Size(5, 32, 4, 48), "4 layers, fewer than 5"),
        (Size(4, 40, 5, 48), "32 features, fewer than 40"),
        (Size(4, 32, 8, 48), "4 attention heads, fewer than 8"),
        (Size(4, 32, 4, 64), "48 feed-forward units, fewer than 64"),
        (Size(4, 16, 4, 24), "multiple of 8 up to 32"),
    ],
)
def test_sizes_that_are_no_piece_of_the_teacher(size: Size, words: str) -> None:
    assert words in str(why_not(size, TEACHER))


def test_a_width_at_which_a_projection_would_vanish_is_refused() -> None:
    teacher = with_exits(stock("electra with narrow embeddings"))
    assert "use another width" in str(misfit(student_of(teacher, Size(2, 16, 2, 24)), teacher))
    assert misfit(student_of(teacher, Size(2, 24, 3, 24)), teacher) is None


def test_another_vocabulary_is_refused() -> None:
    teacher, student = with_exits(stock("bert")), with_exits(stock("bert"))
    student.stock.bert.embeddings.word_embeddings = torch.nn.Embedding(61, 32)
    assert "a weight is [61, 32] where the teacher has [60, 32]" in str(misfit(student, teacher))


def test_a_smaller_size_is_a_piece_of_the_teacher() -> None:
    assert why_not(Size(2, 16, 2, 30), TEACHER) is None


def test_axes_are_known_words() -> None:
    from typing import get_args

    for family in CUT:
        anatomy = with_exits(stock(family)).encoder.anatomy()
        used = {axis for part in (*anatomy.rest, *sum(anatomy.blocks, ())) for axis in (part.rows, part.columns)}
        assert used <= {None, *get_args(Axis)}
