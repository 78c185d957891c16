"""Policy `patience`: leave when exits keep agreeing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit import Evidence, ExitPolicy, Shape, State, hookimpl, knob


@dataclass(frozen=True)
class Patience(ExitPolicy):
    """Leave once the answer has stayed the same for `patience` exits in a row after the first that gave it.

    PABEE (2006.04152, section 3.2) for every unit by itself; the released code counts for the whole batch at once. A
    change sets the counter to 0, so the earliest exit possible is `patience` + 1. The answer is the exit's own.

    The same answer is the same label; in multi-label the same set of labels; in regression a value less than
    `tolerance` away from that of the exit before. PABEE measures the tolerance in label units, and its default of 0
    never leaves; here it is a share of the standard deviation of the training labels.
    """

    patience: int = knob(
        2, low=1, high=lambda shape: max(1, shape.exits - 1), off=lambda shape: shape.exits, raising="later"
    )
    tolerance: float = knob(0.1, low=0.0, high=1.0, raising="earlier", tasks=["regression"])

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """Never: any answer can stay the same."""
        return None

    def start(self, units: int, device: torch.device) -> State:
        """Nobody has an answer yet."""
        return {
            "answer": torch.full((units,), -1, dtype=torch.long, device=device),
            "value": torch.full((units,), torch.inf, dtype=torch.float32, device=device),
            "agreed": torch.zeros(units, dtype=torch.long, device=device),
        }

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself; ties between classes go to the first."""
        answer, value = state["answer"], state["value"]
        if seen.task == "regression":
            value = seen.logits[:, 0].float()
            same = (value - state["value"]).abs() < self.tolerance * seen.scale
        else:
            answer = fingerprint(seen.logits > 0) if seen.task == "multi-label" else seen.logits.argmax(dim=-1)
            same = answer == state["answer"]
        agreed = torch.where(same, state["agreed"] + 1, 0)
        return agreed >= self.patience, {"answer": answer, "value": value, "agreed": agreed}


def fingerprint(holds: Tensor) -> Tensor:
    """One number [U] for every set of labels [U, C]: the sum of a random 62-bit number for each label that holds.

    Different sets of up to some thousand labels get the same number with a chance of less than 2⁻⁵⁰. Never −1.
    """
    random = torch.Generator().manual_seed(0)
    numbers = torch.randint(2**62, (holds.shape[-1],), generator=random).to(holds.device)
    return torch.where(holds, numbers, 0).sum(dim=-1) & (2**62 - 1)


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `patience`."""
    register("patience", Patience)
