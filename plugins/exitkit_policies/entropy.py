"""Policy `entropy`: leave when the answer is certain enough."""

import math
from dataclasses import dataclass

from torch import Tensor

from exitkit import Evidence, ExitPolicy, Shape, State, hookimpl, knob, label_entropy, normalised_entropy


def _most(shape: Shape) -> float:
    """The largest entropy in nats, ln C. Only `nats` needs more than 1, where everybody leaves without it."""
    return max(1.0, math.log(shape.labels)) if shape.task in ("classification", "tagging") else 1.0


@dataclass(frozen=True)
class Entropy(ExitPolicy):
    """Leave once the normalised entropy of the exit's answer is below `threshold`.

    DeeBERT (2004.12993, section 2.2) with FastBERT's normalisation (2004.02178, eq. 7): entropy is divided by ln C,
    so a threshold means the same for any number of classes. To carry one over from DeeBERT, RomeBERT, BERxiT or
    ElasticBERT, which measure in nats, divide it by ln C. The comparison is strict.

    With `nats` the threshold is in nats, as those papers give it, and is divided by ln C here.

    In multi-label every label is a question of its own with the entropy of a coin, and the least certain one decides.
    """

    threshold: float = knob(0.1, low=0.0, high=_most, off=-1.0, raising="earlier", per_exit=True)
    nats: bool = False

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """A value has no entropy: softmax over one logit is 1, and everybody would leave at the first exit."""
        if shape.task == "regression":
            return "a single value has no entropy. Use patience, which watches how much it still changes"
        return None

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself."""
        if seen.task == "multi-label":
            return label_entropy(seen.logits).amax(dim=-1) < self.threshold / (math.log(2) if self.nats else 1), state
        return normalised_entropy(seen.logits) < self.threshold / (math.log(seen.labels) if self.nats else 1), state


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `entropy`."""
    register("entropy", Entropy)
