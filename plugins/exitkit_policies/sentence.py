"""Policy `sentence`: in tagging, leave with the whole sentence once its words are certain enough."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit import Evidence, ExitPolicy, Shape, State, hookimpl, knob, normalised_entropy

RANKS = {"max": 1.0, "q90": 0.9, "q75": 0.75}


@dataclass(frozen=True)
class Sentence(ExitPolicy):
    """Leave once the pooled normalised entropy of the sentence's words is below `threshold`.

    SentEE (Li et al., 2105.13878, section 3.2). `pool` is `max` (published), `mean`, or a quantile, interpolated: with
    the maximum long sentences hardly ever leave. Where it differs from the released code: it works at any batch size,
    and padding takes no part.
    """

    threshold: float = knob(0.1, low=0.0, high=1.0, off=-1.0, raising="earlier", per_exit=True)
    pool: str = knob("max", choices=("max", "mean", "q90", "q75"))

    together = True

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """It pools words."""
        return None if shape.task == "tagging" else "it pools the words of a sentence. Use entropy"

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Sentence by sentence."""
        uncertainty = normalised_entropy(seen.logits)
        group = _groups(seen.sequence)
        pooled = _mean(uncertainty, group) if self.pool == "mean" else _quantile(uncertainty, group, RANKS[self.pool])
        return pooled[group] < self.threshold, state


def _groups(sequence: Tensor) -> Tensor:
    """Sentences [U] numbered from 0 without gaps: there may be some without a word."""
    return torch.nn.functional.pad((sequence.diff() != 0).long(), (1, 0))[: len(sequence)].cumsum(0)


def _mean(values: Tensor, group: Tensor) -> Tensor:
    """Means by group, at the front of [U]."""
    zeros = torch.zeros_like(values)
    counts = zeros.index_add(0, group, torch.ones_like(values)).clamp(min=1)
    return zeros.index_add(0, group, values) / counts


def _quantile(values: Tensor, group: Tensor, rank: float) -> Tensor:
    """Quantiles by group, at the front of [U]; NaN counts as the largest."""
    by_value = values.argsort(stable=True)
    ordered = values[by_value[group[by_value].argsort(stable=True)]]  # [U] group after group, rising
    counts = torch.zeros_like(group).index_add(0, group, torch.ones_like(group))
    first, last = counts.cumsum(0) - counts, max(len(values) - 1, 0)
    place = rank * (counts - 1).clamp(min=0).double()  # in its sentence: what rounds must not depend on the batch
    below = (first + place.floor().long()).clamp(max=last)
    above = (first + place.ceil().long()).clamp(max=last)
    return torch.lerp(ordered[below], ordered[above], (place - place.floor()).to(values.dtype))


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `sentence`."""
    register("sentence", Sentence)
