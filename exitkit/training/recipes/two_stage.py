"""Recipe `two-stage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Group, Phase, Recipe

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel

FINE_TUNE = "fine-tune"
EXITS = "exits"


@dataclass(frozen=True)
class TwoStage(Recipe):
    """Fine-tune the model, freeze it, train the exits.

    First the full model as always, loss CE of the last exit; then Σ CE of exits 1..E−1 with everything else frozen.

    DeeBERT's schedule (2004.12993, section 2.1). The full model's answers stay bit for bit those of the first phase,
    or of the fine-tuned classifier that training starts from. Where it differs from the released code: frozen parts
    run without dropout, take no part in gradient clipping and do not decay.
    """

    learning_rate: float = 5e-5
    head_learning_rate: float = 3e-4

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """`fine-tune`, then `exits`."""
        parts = model.parts()
        exits = list(model.heads.parameters())
        of_exits = {id(parameter) for parameter in exits}
        stock_head = [parameter for parameter in parts["heads"] if id(parameter) not in of_exits]
        tuned = [Group(parts["encoder"], self.learning_rate), Group(stock_head, self.head_learning_rate)]
        return [
            Phase(FINE_TUNE, epochs, tuned, fine_tunes=True),
            Phase(EXITS, epochs, [Group(exits, self.head_learning_rate)]),
        ]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The task's loss at the last exit, or at all others."""
        if phase == FINE_TUNE:
            return {"last": seen.loss(seen.logits[-1])}
        return {f"exit_{number}": seen.loss(logits) for number, logits in enumerate(seen.logits[:-1], start=1)}


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `two-stage`."""
    register("two-stage", TwoStage)
