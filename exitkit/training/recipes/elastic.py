"""Recipe `elastic`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Recipe
from exitkit.training.recipes.joint import Joint

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel
    from exitkit.engine.stream import Stream


@dataclass(frozen=True)
class Elastic(Joint):
    """All exits at once with equal weights, and a gradient that does not grow with depth.

    Σ CE_ℓ with gradient equilibrium (ElasticBERT, 2110.07038, section 3.2; Li et al., 1908.06294, section 3.3).

    With r exits at or above an exit, the gradient into its states is the average of those of the r losses:
    states × 1/r before the exit branches off, × (r − 1) on the way onward. Heads keep their full gradient. The same
    op on the released code's layers; here also where only some layers have exits.
    """

    learning_rate: float = 2e-5
    head_learning_rate: float = 2e-5

    def between(
        self, phase: str, model: ExitModel, index: int, before: Stream, after: Stream, progress: float = 0.0
    ) -> Stream:
        """× 1/r on the gradient of states that an exit reads."""
        if index + 1 not in model.exits:
            return after
        remaining = sum(layer > index for layer in model.exits)
        return after.carrying(scale_gradient(after.hidden, 1 / remaining))

    def onward(
        self,
        phase: str,
        model: ExitModel,
        exit: int,
        stream: Stream,
        logits: Tensor,
        progress: float = 0.0,
        part: int = 0,
    ) -> Stream:
        """× (r − 1) on the gradient that comes back from the layers above."""
        remaining = len(model.exits) - exit + 1
        return stream.carrying(scale_gradient(stream.hidden, remaining - 1))

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The task's loss at every exit, all alike."""
        return {f"exit_{number}": seen.loss(logits) for number, logits in enumerate(seen.logits, start=1)}


class _Scaled(torch.autograd.Function):
    """The identity whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(states: Tensor, factor: float) -> Tensor:
    """The same states, whose gradient is multiplied by `factor`."""
    scaled: Tensor = _Scaled.apply(states, factor)  # type: ignore[no-untyped-call]
    return scaled


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `elastic`."""
    register("elastic", Elastic)
