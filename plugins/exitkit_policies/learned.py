"""Policy `learned`: leave when a small trained module says that the answer is right."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from exitkit import Evidence, ExitPolicy, Shape, State, hookimpl, knob


@dataclass(frozen=True)
class Learned(ExitPolicy):
    """Leave once the probe's estimate that the exit is wrong is below `threshold`.

    BERxiT's learning to exit (EACL 2021, section 3.3): u = σ(w·c + b) on the head's hidden state c, one w and b for all
    exits. The paper speaks of certainty above a threshold; the code, and this, of its complement. The comparison is
    strict. Works for regression too, where u estimates how far off the value is.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logits", "probe"})
    trained_by: ClassVar[str | None] = "berxit"

    threshold: float = knob(0.1, low=0.0, high=1.0, off=-1.0, raising="earlier", per_exit=True)

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """Never: the probe learns what wrong means for the task."""
        return None

    @classmethod
    def probe(cls, shape: Shape) -> nn.Module:
        """One linear unit for all exits: [U, d] to [U, 1]."""
        return nn.Sequential(nn.Linear(shape.width, 1), nn.Sigmoid())

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself."""
        assert seen.probe is not None, "the loop gives what `reads` names"
        return seen.probe[:, 0].float() < self.threshold, state


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `learned`."""
    register("learned", Learned)
