"""Losses that distillation methods share. Nothing here is ever padded: states and pairs are those of real tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, mse_loss

from exitkit.errors import UsageError, one_of
from exitkit.recipe import EveryExit
from exitkit.training.losses import distillation

KINDS = ("soft", "mse")


def check_answers(loss: str, temperature: float, hard: float) -> None:
    """Raise UsageError for options of `answer_losses` that mean nothing."""
    if loss not in KINDS:
        raise UsageError(one_of("method.loss", loss, KINDS))
    if not temperature > 0:
        raise UsageError(f"method.temperature: {temperature} is not a number above 0.")
    if not 0 <= hard <= 1:
        raise UsageError(f"method.hard: {hard} is not a number from 0 to 1.")


def answer_losses(seen: EveryExit, loss: str, temperature: float, hard: float) -> dict[str, Tensor]:
    """What every exit learns from the teacher's answers and, where there are any, from labels.

    Of exit e on layer ℓ, ℓ/Σℓ times the mean over units of (1 − hard) · `answer_loss` + hard · the task's own loss for
    units with a label, and of `answer_loss` alone for units without one. Units of which the teacher says nothing, which
    are words that it does not see, do not count. (Under gradient accumulation a micro-batch's mean weighs as all of its
    words do, such words among them.)
    """
    assert seen.lesson is not None
    assert seen.lesson.logits is not None
    teacher, answered, total = seen.lesson.logits, seen.lesson.answered, sum(seen.layers)
    counted = torch.ones(len(teacher), dtype=torch.bool, device=teacher.device) if answered is None else answered
    labelled = torch.zeros_like(counted)
    if seen.labels is not None:
        labelled = counted if seen.labelled is None else counted & seen.labelled
    units = counted.sum().clamp(min=1)  # sentences may be without words, a whole batch of them too
    parts = [(some, share) for some, share in ((labelled, 1 - hard), (counted & ~labelled, 1.0)) if some.any()]
    found: dict[str, Tensor] = {}
    for number, (layer, logits) in enumerate(zip(seen.layers, seen.logits, strict=True), start=1):
        weight = layer / total
        taught = [
            share * some.sum() / units * answer_loss(seen, teacher[some], logits[some], loss, temperature)
            for some, share in parts
        ]
        found[f"taught_{number}"] = weight * torch.stack([logits[:0].sum(), *taught]).sum()
        if hard and seen.labels is not None:
            found[f"exit_{number}"] = weight * hard * labelled.sum() / units * seen.loss(logits, answered)
    return found


def answer_loss(seen: EveryExit, teacher: Tensor, student: Tensor, loss: str, temperature: float) -> Tensor:
    """How far an exit's logits [U, C] are from the teacher's.

    `soft`: T²·KL(teacher ‖ student) of answers softened by T (Hinton et al., 1503.02531, section 2), in multi-label of
    each label's coin, in regression the squared difference. `mse`: the mean squared difference of logits (Ba and
    Caruana, 1312.6184, eq. 1, there a sum over classes).
    """
    if loss == "mse":
        return mse_loss(student.float(), teacher.float())
    return distillation(teacher, student, seen.task, temperature)


def hidden_loss(student: Tensor, teacher: Tensor, projection: nn.Module | None) -> Tensor:
    """Mean squared difference of states [T, d] and [T, d'], the student's projected where widths differ.

    TinyBERT, 1909.10351, eq. 8 and 9. The released code averages over padding too, so that its loss depends on the
    batch; here over real tokens only.
    """
    student = student.float()  # losses stand outside of autocast
    if projection is not None:
        student = projection(student)
    return mse_loss(student, teacher.float())


def units_loss(student: Tensor, teacher: Tensor, projection: nn.Module) -> Tensor:
    """Mean squared difference of the vectors of units, [U, d] projected and [U, d']; 0 where there is no unit.

    2004.03097, where the squares of a vector's features are added up; here they are averaged, so that the width of the
    teacher does not change the size of the loss.
    """
    difference: Tensor = projection(student.float()) - teacher.float()  # losses stand outside of autocast
    return difference.square().sum() / max(1, difference.numel())


def scores_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of attention scores before the softmax, [P, H] and [P, H'], over pairs of real tokens.

    TinyBERT, 1909.10351, eq. 7, whose students have as many heads as their teachers. Where the numbers differ, the
    means over heads are compared. The released code sets masked scores to zero and averages over them; here there are
    none.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1), teacher.mean(dim=1)
    return mse_loss(student.float(), teacher.float())


def relations_loss(student: Tensor, teacher: Tensor, lengths: Sequence[int], heads: int) -> Tensor:
    """How differently the tokens of a sequence relate: Σ over q-q, k-k, v-v of KL(teacher ‖ student), a scalar.

    A relation is softmax(x·xᵀ / √dᵣ) over the tokens of a sequence, x being queries, keys or values cut into so many
    relation heads of dᵣ features. Widths may differ, since only relations are compared. MiniLMv2, 2012.15828, eq. 2 to
    4, with all weights 1; there every sequence counts the same, here every token of the batch does.

    Args:
        student: [T, 3, d] queries, keys and values, sequences end to end.
        teacher: [T, 3, d'] those of the teacher.
        lengths: [S] tokens of each sequence.
        heads: relation heads; divides both widths.
    """
    found, start = [], 0
    for length, run in groupby(lengths):
        count = sum(1 for _ in run)
        end = start + count * length
        own, theirs = (_relations(side[start:end], count, length, heads) for side in (student, teacher))
        found.append((theirs.exp() * (theirs - own)).sum())
        start = end
    return torch.stack(found).sum() / (start * heads)


def _relations(vectors: Tensor, count: int, length: int, heads: int) -> Tensor:
    """Logarithms of the relations [S, 3, heads, length, length] of sequences of one length, from [S · length, 3, d]."""
    parts = vectors.float().view(count, length, 3, heads, -1).permute(0, 2, 3, 1, 4)
    return log_softmax(parts @ parts.transpose(-1, -2) * parts.shape[-1] ** -0.5, dim=-1)
