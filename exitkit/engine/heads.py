"""Exit heads 1..E−1: a pool over the tokens of a unit, one hidden layer, a classifier."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from exitkit.engine.encoders.base import first_tokens, linear_cost, mean_of_pieces, mean_of_tokens
from exitkit.engine.stream import Stream
from exitkit.errors import UsageError, one_of

Pooling = Literal["cls", "mean", "mix"]


class ExitHead(nn.Module):
    """dense → tanh → dropout → linear on a pooled state (DeeBERT's "off-ramp", 2004.12993, section 2.1).

    `pooling` is what the head reads of a sequence: `cls` its first token, `mean` the mean of its tokens, `mix` both
    side by side; in tagging the same of a word and its pieces. DeeBERT and its heirs read [CLS] only, which
    leaves the first exits of encoders that were pre-trained for mean pooling at chance.
    """

    def __init__(self, width: int, labels: int, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.pooling = pooling
        self.dense = nn.Linear(2 * width if pooling == "mix" else width, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, labels)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Features [U, d] (what a probe reads) and logits [U, C] of pooled states [U, d]."""
        features = torch.tanh(self.dense(pooled))
        return features, self.out(self.dropout(features) if self.training else features)

    def cost(self) -> int:
        """Multiply-adds per unit."""
        return linear_cost(self)


def pool(stream: Stream, pooling: Pooling, task: str, units: Tensor | None = None) -> Tensor:
    """What the exit heads read of the units in rows `units` [n] (None = all): [n, d], for `mix` [n, 2 d].

    The stream has finished states.
    """
    if pooling == "cls":
        return first_tokens(stream, units)
    mean = mean_of_pieces(stream) if task == "tagging" else mean_of_tokens(stream)
    if units is not None:
        mean = mean.index_select(0, units)
    return mean if pooling == "mean" else torch.cat([first_tokens(stream, units), mean], dim=-1)


def choose_pooling(asked: str, task: str) -> Pooling:
    """`auto` is mean, which was never much worse than [CLS] and often far better at the first exits.

    In tagging it is `cls`, a word's first piece, which the stock head reads too.
    """
    if asked == "auto":
        return "cls" if task == "tagging" else "mean"
    if asked not in get_args(Pooling):
        raise UsageError(one_of("pooling", asked, ["auto", *get_args(Pooling)]))
    return asked  # type: ignore[return-value]  # just checked
