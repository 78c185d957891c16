"""Policy `margin`: leave when the two best classes are far enough apart."""

from dataclasses import dataclass

from torch import Tensor

from exitkit import Evidence, ExitPolicy, State, hookimpl, knob


@dataclass(frozen=True)
class Margin(ExitPolicy):
    """Leave once the two most probable classes are more than `threshold` apart."""

    threshold: float = knob(0.5, low=0.0, high=1.0, off=2.0, raising="later", per_exit=True)

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself."""
        first, second = seen.logits.float().softmax(-1).topk(2).values.unbind(-1)
        return first - second > self.threshold, state


@hookimpl
def register_policies(register):
    """Offer `margin`."""
    register("margin", Margin)
