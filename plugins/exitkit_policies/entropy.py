"""Policy `entropy`: leave when the answer is certain enough."""

from dataclasses import dataclass

from torch import Tensor

from exitkit import Evidence, ExitPolicy, State, hookimpl, knob, normalised_entropy


@dataclass(frozen=True)
class Entropy(ExitPolicy):
    """Leave once the normalised entropy of the exit's answer is below `threshold`.

    DeeBERT (2004.12993, section 2.2) with FastBERT's normalisation (2004.02178, eq. 7): entropy is divided by ln C,
    so a threshold means the same for any number of classes. To carry one over from DeeBERT, RomeBERT, BERxiT or
    ElasticBERT, which measure in nats, divide it by ln C. The comparison is strict.
    """

    threshold: float = knob(0.1, low=0.0, high=1.0, off=-1.0, raising="earlier", per_exit=True)

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself."""
        return normalised_entropy(seen.logits) < self.threshold, state


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `entropy`."""
    register("entropy", Entropy)
