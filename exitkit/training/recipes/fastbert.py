"""Recipe `fastbert`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Phase, Recipe
from exitkit.training.losses import distillation
from exitkit.training.recipes.two_stage import EXITS, TwoStage

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel


@dataclass(frozen=True)
class FastBert(TwoStage):
    """Fine-tune the model, then let it teach its exits, without labels.

    Phase `fine-tune`: CE of the last exit. Phase `exits`: Σ_{e<E} KL(last ‖ exit e), all but exits 1..E−1 frozen.

    FastBERT (2004.02178, section 3.2; released code): the second phase at ten times the learning rate, temperature 1,
    teacher first in the divergence (the paper writes it the other way round). It needs no labels, so texts of
    `--unlabelled` join in. Where it differs: in the first phase too the model's own head, which starts from nothing,
    learns at `head_learning_rate` (released: 2e-5 for all). The released schedule of the second phase is as long as the
    first and ends early, its teacher keeps its dropout, and its exits attend over tokens; here the schedule fits, the
    teacher is in evaluation mode, and exits are exitkit's.
    """

    learning_rate: float = 2e-5
    head_learning_rate: float = 2e-4

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """`fine-tune`, then `exits` without labels."""
        tune, exits = super().phases(model, epochs)
        return [tune, replace(exits, label_free=True)]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The task's loss at the last exit, or its lesson to the others."""
        if phase != EXITS:
            return super().losses(phase, seen)
        teacher = seen.logits[-1].detach()
        return {
            f"exit_{number}": distillation(teacher, logits, seen.task, 1.0)
            for number, logits in enumerate(seen.logits[:-1], start=1)
        }


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `fastbert`."""
    register("fastbert", FastBert)
