"""Policy `hash`: the exit depends on the input's tokens and on nothing that was learned."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from exitkit import Evidence, ExitPolicy, Shape, State, hookimpl, knob


@dataclass(frozen=True)
class Hash(ExitPolicy):
    """Leave at each exit with chance `rate`, drawn from a hash of the unit's tokens: the same text, the same exit.

    The control that learned rules must beat: HashEE (Findings of ACL 2022) showed that assigning exits without looking
    at the answers does about as well as several rules that do. HashEE gives every token an exit by a hash of the token;
    here a unit (a sequence, or a word in its sequence) gets one, so that it works for any task.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"key"})

    rate: float = knob(0.3, low=0.0, high=1.0, off=0.0, raising="earlier")

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """Never: it looks at no answer."""
        return None

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """A fresh number between 0 and 1 per unit and exit, by Knuth's multiplicative hash and a xor-shift."""
        assert seen.key is not None, "the loop gives what `reads` names"
        mixed = ((seen.key + seen.exit * 0x27D4EB2F) * 2654435761) & (2**32 - 1)
        mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & (2**32 - 1)
        drawn = (mixed ^ (mixed >> 13)).double() / 2**32
        return drawn < self.rate, state


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `hash`."""
    register("hash", Hash)
