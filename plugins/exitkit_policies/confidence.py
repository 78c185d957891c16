"""Policy `confidence`: leave when one class is probable enough."""

from dataclasses import dataclass

from torch import Tensor

from exitkit import Evidence, ExitPolicy, State, hookimpl, knob


@dataclass(frozen=True)
class Confidence(ExitPolicy):
    """Leave once the largest probability of the exit's answer is above `threshold`.

    The rule of CascadeBERT (2012.14682, section 3.1) between the exits of one model. With two classes it makes the
    same decisions as entropy at another scale; with more it ignores how the rest is spread. The comparison is strict.
    """

    threshold: float = knob(0.9, low=lambda shape: 1 / shape.labels, high=1.0, off=2.0, raising="later", per_exit=True)

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself."""
        return seen.logits.float().softmax(dim=-1).amax(dim=-1) > self.threshold, state


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `confidence`."""
    register("confidence", Confidence)
