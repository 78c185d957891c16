"""What work costs: multiply-adds, and the ratios called speed-up.

Counted are the linear layers of blocks, heads and probes and the two products of attention, over real tokens only.
Adds, norms, activations and embedding look-ups are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from exitkit.encoders.base import LayerCost, linear_cost
from exitkit.model import ExitModel
from exitkit.replay import Outcome, Recording
from exitkit.trace import Trace, Work

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prices:
    """Multiply-adds of a model's parts."""

    layers: tuple[LayerCost, ...]  # [L]
    heads: tuple[int, ...]  # [E] per unit
    probes: Mapping[str, int] = field(default_factory=dict)  # by policy, per unit and exit


def prices(model: ExitModel) -> Prices:
    """The prices of a model."""
    return Prices(
        layers=tuple(model.encoder.layer_cost(index) for index in range(model.shape.layers)),
        heads=(*(head.cost() for head in model.exit_heads), model.encoder.stock_head_cost()),
        probes={name: linear_cost(probe) for name, probe in model.probes.items()},
    )


def flops(work: Work, price: Prices) -> int:
    """Multiply-adds of some work."""
    layers = sum(
        cost.key * keys + cost.query * queries + cost.pair * scores
        for cost, keys, queries, scores in zip(price.layers, work.keys, work.queries, work.scores, strict=True)
    )
    return layers + work.probes + sum(units * cost for units, cost in zip(work.heads, price.heads, strict=True))


def full_work(work: Work, units: int) -> Work:
    """What the full model does for the rows that `work` was done for: every layer, only the last head."""
    layers = len(work.queries)
    return Work(
        tokens=work.tokens,
        pairs=work.pairs,
        queries=(work.tokens,) * layers,
        keys=(work.tokens,) * layers,
        scores=(work.pairs,) * layers,
        heads=(0,) * (len(work.heads) - 1) + (units,),
    )


def speedups(trace: Trace, price: Prices) -> dict[str, float]:
    """Work of the full model ÷ work of this run, in the currencies that can be counted: layers and flops."""
    units = trace.exit.shape[0]
    return {
        "layers": len(price.layers) * units / max(1, int(trace.layers.sum())),
        "flops": flops(full_work(trace.work, units), price) / flops(trace.work, price),
    }


class ReplayCost:
    """Work of replayed outcomes, from the lengths of the recorded rows.

    Exact where a live run computes what the replay takes for granted; in tagging context tokens count as active as long
    as their sentence runs, or with `context_halts` until its first word has left.
    """

    def __init__(
        self,
        recording: Recording,
        price: Prices,
        reads_logits: bool,
        asks_from: int = 1,
        probe: int = 0,
        context_halts: bool = False,
    ) -> None:
        def counts(values: Tensor) -> Counts:
            return values.numpy().astype(np.float64)

        self.price, self.sequences, self.context_halts = price, recording.sequences, context_halts
        self.layer_of_exit = np.asarray(recording.layers)
        self.lengths = counts(recording.lengths)  # [S]
        everyone = np.arange(self.sequences)
        self.sequence = everyone if recording.sequence is None else recording.sequence.numpy()  # [N]
        self.tokens = self.lengths if recording.tokens is None else counts(recording.tokens)  # [N]
        self.context = self.lengths - self._sums(self.tokens, np.ones(recording.units, dtype=bool))  # [S]
        heads = np.asarray(price.heads, dtype=np.float64)
        asked = heads + np.where(np.arange(len(heads)) < len(heads) - 1, probe, 0)  # nobody decides at the last exit
        # [E] heads that a unit has paid for when it leaves
        self.paid = np.where(np.arange(len(heads)) < asks_from - 1, 0, asked).cumsum() if reads_logits else heads
        full = sum(_layer(cost, self.lengths, self.lengths) for cost in price.layers)
        self.full = full + recording.units * float(heads[-1])

    def speedups(self, outcome: Outcome) -> dict[str, float]:
        """Layers and flops of an outcome, as `speedups` counts them for a live trace."""
        taken = outcome.exit.numpy() - 1
        layers = self.layer_of_exit[taken]  # [N]
        spent = float(self.paid[taken].sum())
        for layer, cost in enumerate(self.price.layers, start=1):
            computing = layers >= layer
            active = self._sums(self.tokens, computing)
            runs = active > 0
            context = runs & ~(self._sums(np.ones_like(self.tokens), ~computing) > 0) if self.context_halts else runs
            spent += _layer(cost, self.lengths * runs, active + self.context * context)
        return {
            "layers": len(self.price.layers) * len(taken) / float(layers.sum()),
            "flops": self.full / spent,
        }

    def _sums(self, values: Counts, units: npt.NDArray[np.bool_]) -> Counts:
        """Sums of [N] values over some units of each sequence: [S]."""
        sums = np.bincount(self.sequence[units], weights=values[units], minlength=self.sequences)
        return sums.astype(np.float64)  # without a unit bincount counts, and gives integers


def _layer(cost: LayerCost, keys: Counts, queries: Counts) -> float:
    """Multiply-adds of one layer over sequences with so many keys and queries each."""
    return float((cost.key * keys + cost.query * queries + cost.pair * queries * keys).sum())
