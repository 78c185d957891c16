"""Losses that distillation methods share. Nothing here is ever padded: states and pairs are those of real tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import mse_loss

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

    Of exit e on layer ℓ, ℓ/Σℓ times (1 − hard) · `answer_loss` + hard · the task's own loss; without any label,
    `answer_loss` alone. A batch that happens to have no label counts none.
    """
    assert seen.lesson is not None
    assert seen.lesson.logits is not None
    teacher, total = seen.lesson.logits, sum(seen.layers)
    share = hard if seen.labels is not None else 0.0
    found: dict[str, Tensor] = {}
    for number, (layer, logits) in enumerate(zip(seen.layers, seen.logits, strict=True), start=1):
        weight = layer / total
        found[f"taught_{number}"] = weight * (1 - share) * answer_loss(seen, teacher, logits, loss, temperature)
        if share:
            found[f"exit_{number}"] = weight * share * seen.loss(logits)
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


def scores_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of attention scores before the softmax, [P, H] and [P, H'], over pairs of real tokens.

    TinyBERT, 1909.10351, eq. 7, whose students have as many heads as their teachers. Where the numbers differ, the
    means over heads are compared. The released code sets masked scores to zero and averages over them; here there are
    none.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1), teacher.mean(dim=1)
    return mse_loss(student.float(), teacher.float())
