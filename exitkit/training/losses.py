"""Losses that several recipes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import kl_div, mse_loss

if TYPE_CHECKING:
    from exitkit.tasks import Task


def distillation(teacher: Tensor, student: Tensor, task: Task, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of answers softened by T, a mean over units (Hinton et al., 1503.02531, section 2).

    In multi-label the divergence of each label's coin, a mean over labels; in regression the squared difference, which
    has no temperature. Logits [U, C]; the teacher's are taken as they are, detach them where they should not learn.
    """
    teacher, student = teacher.float(), student.float()
    if task.kind == "regression":
        return mse_loss(student, teacher)
    if task.kind == "multi-label":
        teacher, student = _coins(teacher), _coins(student)
    said, meant = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    divergence = kl_div(said, meant, reduction="sum", log_target=True) / max(len(said), 1)  # no word at all gives 0
    return temperature**2 * divergence


def _coins(logits: Tensor) -> Tensor:
    """Each label of [U, C] as two classes with logits z and 0: [U · C, 2]."""
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, 1)
