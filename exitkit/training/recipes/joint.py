"""Recipe `joint`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Group, Phase, Recipe

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel


@dataclass(frozen=True)
class Joint(Recipe):
    """The whole model and all exits at once, deep exits weighing more.

    One phase, nothing frozen: Σ ℓ·CE_ℓ / Σ ℓ over the exits, ℓ the layer of the exit.

    PABEE (2006.04152, eq. 4). Where it differs: the exits have heads of their own (PABEE's share a pooler), and heads
    learn faster than the encoder, because they start from nothing.
    """

    learning_rate: float = 5e-5
    head_learning_rate: float = 3e-4

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """A single phase, `joint`."""
        parts = model.parts()
        groups = [
            Group(parts["encoder"], self.learning_rate),
            Group(parts["heads"], self.head_learning_rate),
        ]
        return [Phase("joint", epochs, groups)]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The task's loss at every exit, weighted."""
        total = sum(seen.layers)
        return {
            f"exit_{number}": layer / total * seen.loss(logits)
            for number, (layer, logits) in enumerate(zip(seen.layers, seen.logits, strict=True), start=1)
        }


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `joint`."""
    register("joint", Joint)
