"""Rules that a user sets around a policy: no exit before, none after, no early answer of some labels, temperatures.

They hold for every policy, in live runs and in replays alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import UsageError, one_of
from exitkit.policy import Decision, Evidence, ExitPolicy, Shape


@dataclass(frozen=True)
class Limits:
    """What a policy may not do. Without arguments: nothing is limited.

    A deadline wins over everything: at `max_exit` whoever still waits is answered.
    """

    min_exit: int = 1  # nobody leaves before this exit
    max_exit: int | None = None  # nobody waits beyond this exit
    never_early: tuple[int, ...] = ()  # class numbers that only the last exit may answer
    temperatures: tuple[float, ...] | None = None  # [E] what the logits of each exit are divided by

    def last(self, exits: int) -> int:
        """The exit at which everybody is answered."""
        return exits if self.max_exit is None else min(self.max_exit, exits)

    def temper(self, exit: int, logits: Tensor) -> Tensor:
        """Logits [..., C] of an exit (from 1), softened."""
        return logits if self.temperatures is None else logits / self.temperatures[exit - 1]

    def hold(self, seen: Evidence, decision: Decision, together: bool = False) -> Decision:
        """A decision without those who may not leave yet; units that leave `together` wait for the others of theirs."""
        if seen.exit < self.min_exit:
            return replace(decision, leave=torch.zeros_like(decision.leave))
        if not self.never_early:
            return decision
        answer = seen.logits if decision.answer is None else decision.answer
        kept = list(self.never_early)
        if seen.task == "multi-label":
            held = (answer[:, kept] > 0).any(dim=1)
        else:
            best = answer.argmax(dim=-1)
            held = torch.stack([best == number for number in kept]).any(dim=0)
        return replace(decision, leave=decision.leave & ~(_spread(held, seen.sequence) if together else held))

    def check(self, name: str, policy: type[ExitPolicy], shape: Shape) -> None:
        """Raise UsageError for limits that this policy or model cannot keep."""
        for flag, exit in (("--min-exit", self.min_exit), ("--max-exit", self.max_exit)):
            if exit is not None and not 1 <= exit <= shape.exits:
                raise UsageError(f"{flag} {exit}: this model has exits 1 to {shape.exits}.")
        if self.never_early and shape.task == "regression":
            raise UsageError("--never-early: a regression model has no labels.")
        if self.never_early and "logits" not in policy.reads:
            raise UsageError(
                f"--never-early: policy '{name}' does not look at answers, so it cannot keep a label back."
            )
        if self.temperatures is not None and len(self.temperatures) != shape.exits:
            raise UsageError(f"{len(self.temperatures)} temperatures for {shape.exits} exits; calibrate again.")

    def as_dict(self, labels: Sequence[str]) -> dict[str, Any]:
        """Plain data for YAML and JSON, what is not limited left out; labels by name."""
        plain = {
            "min_exit": self.min_exit if self.min_exit > 1 else None,
            "max_exit": self.max_exit,
            "never_early": [labels[number] for number in self.never_early] or None,
            "temperatures": None if self.temperatures is None else list(self.temperatures),
        }
        return {key: value for key, value in plain.items() if value is not None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], labels: Sequence[str]) -> Limits:
        """The inverse of `as_dict`. Raises UsageError for a label that the model does not have."""
        never = plain.get("never_early") or []
        for label in never:
            if label not in labels:
                raise UsageError("--never-early: " + one_of("label", label, labels))
        temperatures = plain.get("temperatures")
        return cls(
            min_exit=plain.get("min_exit") or 1,
            max_exit=plain.get("max_exit"),
            never_early=tuple(list(labels).index(label) for label in never),
            temperatures=None if temperatures is None else tuple(float(t) for t in temperatures),
        )


def _spread(held: Tensor, sequence: Tensor) -> Tensor:
    """Whether any unit of the same sequence is held [U]; `sequence` [U] ascends, perhaps with gaps."""
    first = torch.ones_like(held)
    first[1:] = sequence.diff() != 0
    group = first.cumsum(0) - 1
    return (torch.zeros_like(group).index_add(0, group, held.long()) > 0)[group]


NONE = Limits()
