"""Recipe `pabee`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import Recipe
from exitkit.training.recipes.joint import Joint

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel


@dataclass(frozen=True)
class Pabee(Joint):
    """All exits at once, deep ones weighing more, behind one shared pooler.

    Σ ℓ·CE_ℓ / Σ ℓ (PABEE, 2006.04152, eq. 4) with one dense layer for exits 1..E−1.

    In regression CE is the squared error. Where it differs: PABEE's last exit uses the shared pooler too; here it is
    the model's own head, so that the checkpoint stays a plain one. All exits of one batch learn at one learning rate.
    """

    learning_rate: float = 2e-5
    head_learning_rate: float = 2e-5

    def prepare(self, model: ExitModel) -> None:
        """Let all exits share the first one's dense layer. The artifact holds a copy of it for each."""
        for head in model.exit_heads[1:]:
            head.dense = model.exit_heads[0].dense


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `pabee`."""
    register("pabee", Pabee)
