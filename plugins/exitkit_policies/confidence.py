"""Policies `confidence` and `cascade`: leave when one class is probable enough."""

from dataclasses import dataclass

from torch import Tensor

from exitkit import Evidence, ExitPolicy, Shape, State, hookimpl, knob


@dataclass(frozen=True)
class Confidence(ExitPolicy):
    """Leave once the largest probability of the exit's answer is above `threshold`.

    The rule of CascadeBERT (2012.14682, section 3.1) between the exits of one model. With two classes it makes the
    same decisions as entropy at another scale; with more it ignores how the rest is spread. The comparison is strict.

    In multi-label it is the probability of a label's likelier side, of the least certain label.
    """

    threshold: float = knob(0.9, low=lambda shape: guess(shape), high=1.0, off=2.0, raising="later", per_exit=True)

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """A value has no probability."""
        if shape.task == "regression":
            return "a single value has no probability. Use patience, which watches how much it still changes"
        return None

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each unit by itself."""
        if seen.task == "multi-label":
            return seen.logits.float().abs().sigmoid().amin(dim=-1) > self.threshold, state
        return seen.logits.float().softmax(dim=-1).amax(dim=-1) > self.threshold, state


def guess(shape: Shape) -> float:
    """The confidence of a model that knows nothing."""
    return 0.5 if shape.task == "multi-label" else 1 / shape.labels


@dataclass(frozen=True)
class Cascade(Confidence):
    """Leave once the largest probability of a model's answer is above `threshold`; else the next model is asked.

    CascadeBERT (2012.14682, section 3.1): `confidence` where the exits are complete models. A row that every model sees
    costs more than the full model alone, so with the policy off a cascade is slower than 1x.
    """

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """A value has no probability, and words of a sentence are not sent to another model one by one."""
        if shape.task in ("classification", "multi-label"):
            return None
        return "it judges the probability of one answer for a whole text"


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `confidence` and `cascade`."""
    register("confidence", Confidence)
    register("cascade", Cascade)
