"""Recipe `rome`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from exitkit.errors import UsageError, one_of
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import Conflict, EveryExit, Group, Phase, Recipe
from exitkit.training.losses import distillation

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel

LAST = "last"
ANCHORS = ("last", "exits", "none")


@dataclass(frozen=True)
class Rome(Recipe):
    """All exits at once, taught by the last one, whose gradient the others must not work against.

    L = CE_E + Σ_{e<E} [(1 − γ)·CE_e + γ·T²·KL(last ‖ exit e)/C], the last exit detached, with projected gradients.

    RomeBERT (2101.09755; released code). γ = 0.9, T = 3. The division by C comes from the released loss, an
    element-wise mean; it keeps the published balance and is written down here so that it does not hide.

    Gradient regularisation: A is the anchor's gradient and B the other's, flat over the weight matrices of all encoder
    layers but the last. If ⟨A, B⟩ < 0, B loses its component along A: B' = B − ⟨A, B⟩/‖A‖²·A. `anchor` says which of
    the two is A: "last" (released for MNLI and QQP), "exits" (released for all other tasks), or "none" for no
    projection. The released code reads A after accumulation, so that several micro-batches mix, and leaves out "layer
    11" by its name; here the step's whole gradients are taken, and the last layer is the last layer.
    """

    learning_rate: float = 2e-5
    head_learning_rate: float = 2e-5
    gamma: float = 0.9
    temperature: float = 3.0
    anchor: str = "exits"

    def __post_init__(self) -> None:
        if self.anchor not in ANCHORS:
            raise UsageError(one_of("recipe.anchor", self.anchor, ANCHORS))

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """A single phase, `rome`."""
        parts = model.parts()
        groups = [Group(parts["encoder"], self.learning_rate), Group(parts["heads"], self.head_learning_rate)]
        return [Phase("rome", epochs, groups)]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The last exit's loss, and a label's and a teacher's for every other exit."""
        found = {LAST: seen.loss(seen.logits[-1])}
        outcomes = 2 if seen.task.kind == "multi-label" else seen.logits.shape[-1]  # a label is a coin
        for number, logits in enumerate(seen.logits[:-1], start=1):
            taught = distillation(seen.logits[-1].detach(), logits, seen.task, self.temperature) / outcomes
            found[f"exit_{number}"] = (1 - self.gamma) * seen.loss(logits)
            found[f"taught_{number}"] = self.gamma * taught
        return found

    def conflict(self, phase: str, model: ExitModel) -> Conflict | None:
        """The last exit against the others."""
        if self.anchor == "none" or len(model.exits) < 2:
            return None
        names = [f"{kind}_{number}" for number in range(1, len(model.exits)) for kind in ("exit", "taught")]
        anchor = frozenset([LAST] if self.anchor == "last" else names)
        return Conflict(anchor, shared_matrices(model), without_opposition)


def shared_matrices(model: ExitModel) -> list[nn.Parameter]:
    """Weight matrices of all encoder layers but the last, each once; biases and norms stay out."""
    blocks = model.encoder.blocks
    last = {id(parameter) for parameter in blocks[-1].parameters()}
    lower = {id(p): p for block in blocks[:-1] for p in block.parameters() if p.dim() > 1}
    apart = [p for key, p in lower.items() if key not in last]
    return apart or list(lower.values())  # where layers share weights, the last is among the others


def without_opposition(anchor: Tensor, other: Tensor) -> Tensor:
    """A + B', B' being B without its component against A: ⟨A, B'⟩ ≥ 0. Flat vectors [P]."""
    inner, square = torch.dot(anchor, other), torch.dot(anchor, anchor)
    share = torch.where(square > 0, (inner / square).clamp(max=0.0), 0.0)
    return anchor + other - share * anchor


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `rome`."""
    register("rome", Rome)
