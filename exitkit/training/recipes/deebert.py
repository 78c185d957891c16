"""Recipe `deebert`."""

from __future__ import annotations

from dataclasses import dataclass

from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import Recipe
from exitkit.training.recipes.two_stage import TwoStage


@dataclass(frozen=True)
class DeeBert(TwoStage):
    """Fine-tune the model, freeze it, train the exits; all at one learning rate.

    Stage 1: CE of the last exit, everything but the exits learns. Stage 2: Σ_{ℓ<L} CE_ℓ, only exits 1..E−1 learn.

    DeeBERT (2004.12993, section 2.1 and the released code): both stages at 2e-5, equal weights, no distillation. Where
    it differs from the released code: "frozen" there means "not in the optimiser", so that stage 2 still runs dropout
    in the encoder and clips by a norm that includes its gradients; here frozen parts do neither. The released last exit
    has a head of its own that nothing trains and that may still answer; here the last exit is the model's own head.
    Exits start from random heads, not from a copy of the pre-trained pooler. The pooling is the user's choice; the
    paper reads [CLS].
    """

    learning_rate: float = 2e-5
    head_learning_rate: float = 2e-5


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `deebert`."""
    register("deebert", DeeBert)
