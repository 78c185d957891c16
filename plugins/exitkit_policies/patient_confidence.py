"""Policy `patient-confidence`: leave when enough exits in a row are certain."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit import Evidence, ExitPolicy, Shape, State, hookimpl, knob, label_entropy, normalised_entropy


@dataclass(frozen=True)
class PatientConfidence(ExitPolicy):
    """Leave once `patience` exits in a row have a normalised entropy below `threshold`.

    PCEE-BERT (Findings of NAACL 2022, section 3): patience over confidence instead of over agreement. An uncertain exit
    sets the counter to 0; `patience` 1 is the policy `entropy`. The answer is the exit's own.
    """

    threshold: float = knob(0.3, low=0.0, high=1.0, off=-1.0, raising="earlier", per_exit=True)
    patience: int = knob(2, low=1, high=lambda shape: max(1, shape.exits - 1), raising="later")

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """A value has no entropy."""
        return "a single value has no entropy. Use patience" if shape.task == "regression" else None

    def start(self, units: int, device: torch.device) -> State:
        """Nobody was certain yet."""
        return {"certain": torch.zeros(units, dtype=torch.long, device=device)}

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself."""
        many = seen.task == "multi-label"
        entropy = label_entropy(seen.logits).amax(dim=-1) if many else normalised_entropy(seen.logits)
        certain = torch.where(entropy < self.threshold, state["certain"] + 1, 0)
        return certain >= self.patience, {"certain": certain}


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `patient-confidence`."""
    register("patient-confidence", PatientConfidence)
