"""What methods share that first look into the teacher and then hand on its answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from exitkit.distillation.losses import answer_losses, check_answers
from exitkit.distiller import Distiller, Reads
from exitkit.recipe import EveryExit, Group, Phase

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel
    from exitkit.policy import Shape

ANSWERS = "answers"


@dataclass(frozen=True)
class ThenAnswers(Distiller):
    """Two phases: one of the method's own without heads, then `answers`, in which every exit learns as by `logits`."""

    first: ClassVar[str]
    """Name of the method's own phase."""

    learning_rate: float = 5e-5
    answers_learning_rate: float = 3e-5
    head_learning_rate: float = 3e-4
    temperature: float = 1.0
    hard: float = 0.5
    loss: str = "soft"

    def __post_init__(self) -> None:
        check_answers(self.loss, self.temperature, self.hard)

    @abstractmethod
    def inside(self, student: Shape, teacher: Shape) -> Reads:
        """What the first phase looks at. Raises UsageError for options that do not fit these two models."""

    @abstractmethod
    def inner_losses(self, seen: EveryExit) -> Mapping[str, Tensor]:
        """Losses of the first phase."""

    def reads(self, phase: str, student: Shape, teacher: Shape) -> Reads:
        """What `inside` says, then answers."""
        inside = self.inside(student, teacher)  # refused before anything is trained
        return Reads() if phase == ANSWERS else inside

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """The method's own, then `answers`."""
        parts = model.parts()
        first = [Group(parts["encoder"], self.learning_rate), Group(parts["scaffold"], self.head_learning_rate)]
        second = [Group(parts["encoder"], self.answers_learning_rate), Group(parts["heads"], self.head_learning_rate)]
        return [Phase(self.first, epochs, first), Phase(ANSWERS, epochs, second)]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The method's own, or the answers'."""
        if phase == ANSWERS:
            return answer_losses(seen, self.loss, self.temperature, self.hard)
        return self.inner_losses(seen)
