"""What work costs: multiply-adds, and the ratios called speed-up.

Counted are the linear layers of blocks, heads and probes and the two products of attention, over real tokens only.
Adds, norms, activations and embedding look-ups are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from exitkit.engine.encoders.base import LayerCost, linear_cost
from exitkit.engine.model import Exits
from exitkit.engine.replay import Outcome, Recording
from exitkit.engine.schedule import Schedule
from exitkit.engine.trace import Trace, Work

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prices:
    """Multiply-adds of a model's parts."""

    layers: tuple[LayerCost, ...]  # [L]
    heads: tuple[int, ...]  # [E] per unit
    probes: Mapping[str, int] = field(default_factory=dict)  # by policy, per unit and exit
    start: int = 0  # layers of the smaller models of a cascade, which the full model does without

    @property
    def full_layers(self) -> int:
        """The layers of the full model."""
        return len(self.layers) - self.start


def prices(model: Exits) -> Prices:
    """The prices of a model, or of all models of a cascade end to end."""
    return Prices(
        layers=tuple(one.encoder.layer_cost(index) for one in model.models for index in range(one.shape.layers)),
        heads=model.head_costs(),
        probes={name: linear_cost(probe) for name, probe in model.probes.items()},
        start=model.shape.starts[-1],
    )


def flops(work: Work, price: Prices) -> int:
    """Multiply-adds of some work."""
    layers = sum(
        cost.key * keys + cost.query * queries + cost.pair * scores
        for cost, keys, queries, scores in zip(price.layers, work.keys, work.queries, work.scores, strict=True)
    )
    return layers + work.probes + sum(units * cost for units, cost in zip(work.heads, price.heads, strict=True))


def full_work(work: Work, units: int, start: int = 0) -> Work:
    """What the full model does for the rows that `work` was done for: every layer above `start`, only the last head."""
    layers = len(work.queries) - start
    tokens, pairs = ((0,) * start + (count,) * layers for count in (work.tokens, work.pairs))
    return Work(
        tokens=work.tokens,
        pairs=work.pairs,
        queries=tokens,
        keys=tokens,
        scores=pairs,
        heads=(0,) * (len(work.heads) - 1) + (units,),
    )


def speedups(trace: Trace, price: Prices) -> dict[str, float]:
    """Work of the full model ÷ work of this run, in the currencies that can be counted: layers and flops."""
    units = trace.exit.shape[0]
    return {
        "layers": price.full_layers * units / max(1, int(trace.layers.sum())),
        "flops": flops(full_work(trace.work, units, price.start), price) / flops(trace.work, price),
    }


class ReplayCost:
    """Work of replayed outcomes, from the lengths of the recorded rows.

    Exact where a live run computes what the replay takes for granted; in tagging context tokens count as active as long
    as their sentence runs, or with `context_halts` until its first word has left.
    """

    def __init__(self, recording: Recording, price: Prices, plan: Schedule) -> None:
        def counts(values: Tensor) -> Counts:
            return values.numpy().astype(np.float64)

        self.price, self.plan, self.sequences = price, plan, recording.sequences
        self.ran = recording.ran(plan)  # [E, L]
        self.models = np.searchsorted(recording.shape.starts, np.arange(len(price.layers)), side="right") - 1  # [L]
        self.lengths = counts(recording.lengths)  # [M, S]
        everyone = np.arange(self.sequences)
        self.sequence = everyone if recording.sequence is None else recording.sequence.numpy()  # [N]
        # [M, N]; in tagging there is one model
        self.tokens = self.lengths if recording.tokens is None else counts(recording.tokens)[None]
        self.one = np.ones(recording.units)  # [N]
        of_units = [self._sums(tokens, self.one > 0) for tokens in self.tokens]
        self.context = self.lengths - np.stack(of_units)  # [M, S]
        heads = np.asarray(price.heads, dtype=np.float64)
        asked = heads + price.probes.get(plan.name, 0)
        asked[-1] = heads[-1]  # nobody decides there
        read = np.array([*plan.read, True])
        self.paid = np.where(read, asked, 0).cumsum() + np.where(read, 0, asked)  # [E] by those who leave there
        full = sum(_layer(cost, self.lengths[-1], self.lengths[-1]) for cost in price.layers[price.start :])
        self.full = full + recording.units * float(heads[-1])

    def speedups(self, outcome: Outcome) -> dict[str, float]:
        """Layers and flops of an outcome, as `speedups` counts them for a live trace."""
        taken = outcome.exit.numpy() - 1
        spent = float(self.paid[taken].sum())
        for cost, there in zip(self.price.layers, self.computing(outcome), strict=True):
            spent += _layer(cost, *there)
        return {
            "layers": self.price.full_layers * len(taken) / int(self.ran[taken].sum()),
            "flops": self.full / spent,
        }

    def computing(self, outcome: Outcome) -> Iterator[tuple[Counts, Counts]]:
        """Layer by layer of all models: the keys and the queries of every sequence, [S] each, 0 where it is done."""
        taken = outcome.exit.numpy() - 1
        ran = self.ran[taken]  # [N, L]
        for layer, model in enumerate(self.models):
            computing = ran[:, layer]
            active = self._sums(self.tokens[model], computing)
            runs = active > 0
            context = runs & ~(self._sums(self.one, ~computing) > 0) if self.plan.first.context_halts else runs
            yield self.lengths[model] * runs, active + self.context[model] * context

    def _sums(self, values: Counts, units: npt.NDArray[np.bool_]) -> Counts:
        """Sums of [N] values over some units of each sequence: [S]."""
        sums = np.bincount(self.sequence[units], weights=values[units], minlength=self.sequences)
        return sums.astype(np.float64)  # without a unit bincount counts, and gives integers


def _layer(cost: LayerCost, keys: Counts, queries: Counts) -> float:
    """Multiply-adds of one layer over sequences with so many keys and queries each."""
    return float((cost.key * keys + cost.query * queries + cost.pair * queries * keys).sum())
