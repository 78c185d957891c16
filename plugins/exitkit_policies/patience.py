"""Policy `patience`: leave when exits keep agreeing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit import Evidence, ExitPolicy, State, hookimpl, knob


@dataclass(frozen=True)
class Patience(ExitPolicy):
    """Leave once the label has stayed the same for `patience` exits in a row after the first that gave it.

    PABEE (2006.04152, section 3.2) for every unit by itself; the released code counts for the whole batch at once. A
    change sets the counter to 0, so the earliest exit possible is `patience` + 1. The answer is the exit's own.
    """

    patience: int = knob(
        2, low=1, high=lambda shape: max(1, shape.exits - 1), off=lambda shape: shape.exits, raising="later"
    )

    def start(self, units: int, device: torch.device) -> State:
        """Nobody has a label yet (−1)."""
        return {
            "label": torch.full((units,), -1, dtype=torch.long, device=device),
            "agreed": torch.zeros(units, dtype=torch.long, device=device),
        }

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself; ties between classes go to the first."""
        label = seen.logits.argmax(dim=-1)
        agreed = torch.where(label == state["label"], state["agreed"] + 1, 0)
        return agreed >= self.patience, {"label": label, "agreed": agreed}


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `patience`."""
    register("patience", Patience)
