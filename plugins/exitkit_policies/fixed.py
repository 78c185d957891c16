"""Policy `fixed`: everybody leaves at the same exit."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exitkit import Evidence, ExitPolicy, Shape, State, hookimpl, knob


@dataclass(frozen=True)
class Fixed(ExitPolicy):
    """Leave at exit `exit`, whatever it says: a shallower model. The baseline that every other policy must beat."""

    reads: ClassVar[frozenset[str]] = frozenset()
    together: ClassVar[bool] = True

    exit: int = knob(1, low=1, high=lambda shape: shape.exits, off=lambda shape: shape.exits, raising="later")

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """Never: it looks at nothing."""
        return None

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Everybody or nobody."""
        return torch.full_like(seen.live, seen.exit >= self.exit), state


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `fixed`."""
    register("fixed", Fixed)
