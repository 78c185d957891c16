"""Method `logits`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from exitkit.distillation.losses import answer_losses, check_answers
from exitkit.distiller import Distiller, Reads
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Group, Phase

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel
    from exitkit.policy import Shape


@dataclass(frozen=True)
class Logits(Distiller):
    """Every exit learns the teacher's answers.

    One phase: Σ ℓ·[(1 − hard)·T²·KL(teacher ‖ exit ℓ) + hard·CE_ℓ] / Σ ℓ over the exits, ℓ the layer of the exit.

    Hinton et al. (1503.02531, section 2) at every exit, deep ones weighing more as in recipe `joint`. `loss`: "soft",
    or "mse" for the squared difference of logits (1312.6184). `hard` is the share of labels; rows without one learn
    from the teacher alone, and without any label it is 0. In regression both losses are the squared difference.
    """

    learning_rate: float = 5e-5
    head_learning_rate: float = 3e-4
    temperature: float = 2.0
    hard: float = 0.5
    loss: str = "soft"

    def __post_init__(self) -> None:
        check_answers(self.loss, self.temperature, self.hard)

    def reads(self, phase: str, student: Shape, teacher: Shape) -> Reads:
        """Answers only, so that teachers may have any size and tokenizer."""
        return Reads()

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """A single phase, `answers`."""
        parts = model.parts()
        groups = [Group(parts["encoder"], self.learning_rate), Group(parts["heads"], self.head_learning_rate)]
        return [Phase("answers", epochs, groups)]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The teacher's answers and the labels, at every exit."""
        return answer_losses(seen, self.loss, self.temperature, self.hard)


@hookimpl
def register_distillers(register: Register[Distiller]) -> None:
    """Offer `logits`."""
    register("logits", Logits)
