"""What a phase of distillation needs besides a recipe: somebody who knows what the teachers say."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from exitkit.engine.internals import Internals
from exitkit.engine.stream import Batch
from exitkit.recipe import Lesson


class Tutor(Protocol):
    """Whoever knows what the teachers say of the training rows, by row number."""

    def prepare(self, phase: str) -> None:
        """What is done once, before a phase."""

    def notes(self, phase: str) -> Internals:
        """An empty record of what a phase looks at inside the student."""

    def lesson(self, phase: str, rows: Tensor, batch: Batch, own: Internals) -> Lesson:
        """What the teachers say of rows [B] that are this batch of the student's, beside the student's record."""
