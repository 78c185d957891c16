"""What work costs: multiply-adds, and the ratios called speed-up.

Counted are the linear layers of blocks, heads and probes and the two products of attention, over real tokens only.
Adds, norms, activations and embedding look-ups are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from exitkit.encoders.base import LayerCost, linear_cost
from exitkit.model import ExitModel
from exitkit.replay import Outcome, Recording
from exitkit.trace import Trace, Work


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
    """Work of replayed outcomes, from the lengths of the recorded rows."""

    def __init__(
        self, recording: Recording, price: Prices, reads_logits: bool, asks_from: int = 1, probe: int = 0
    ) -> None:
        lengths = recording.lengths.numpy().astype(np.float64)
        self.layer_of_exit = np.asarray(recording.layers)
        per_layer = np.stack(
            [(cost.key + cost.query) * lengths + cost.pair * lengths * lengths for cost in price.layers]
        )  # [L, N]
        up_to_exit = per_layer.cumsum(axis=0)[self.layer_of_exit - 1]  # [E, N]
        heads = np.asarray(price.heads, dtype=np.float64)
        asked = heads + np.where(np.arange(len(heads)) < len(heads) - 1, probe, 0)  # nobody decides at the last exit
        paid = np.where(np.arange(len(heads)) < asks_from - 1, 0, asked).cumsum() if reads_logits else heads
        self._flops: npt.NDArray[np.float64] = up_to_exit + paid[:, None]
        self._full = float((up_to_exit[-1] + heads[-1]).sum())
        self._layers = len(price.layers)

    def speedups(self, outcome: Outcome) -> dict[str, float]:
        """Layers and flops of an outcome, as `speedups` counts them for a live trace."""
        taken = outcome.exit.numpy() - 1
        rows = np.arange(len(taken))
        return {
            "layers": self._layers * len(taken) / float(self.layer_of_exit[taken].sum()),
            "flops": self._full / float(self._flops[taken, rows].sum()),
        }
