"""A record of what goes on inside a model during a pass."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from exitkit.engine.attention import scores
from exitkit.engine.encoders.base import Encoder
from exitkit.engine.heads import Pooling, pool
from exitkit.engine.stream import Stream
from exitkit.errors import UsageError


class Internals:
    """Writes down what is inside some layers. Its methods are the hooks of `loop.full_pass`.

    Everything is without padding and keeps its gradient; tokens are in packed order, units in that of the batch.

    Args:
        encoder: of the model that runs.
        hidden: layers (from 1) whose states are written down; 0 is what the first layer reads.
        scores: layers whose attention scores before the softmax are.
        vectors: layers whose queries, keys and values are.
        pooled: layers whose states are, unit by unit, as an exit there would read them.
        pooling: what of a unit's states that is; None = what the stock head reads.
    """

    def __init__(
        self,
        encoder: Encoder,
        hidden: Collection[int],
        scores: Collection[int],
        vectors: Collection[int] = (),
        pooled: Collection[int] = (),
        pooling: Pooling | None = None,
    ) -> None:
        self.encoder, self.pooling = encoder, pooling
        self.lengths: tuple[int, ...] = ()  # [S] tokens of each sequence, in packed order
        self.hidden: dict[int, Tensor | None] = dict.fromkeys(hidden)  # [T, d]
        self.scores: dict[int, Tensor | None] = dict.fromkeys(scores)  # [P, H]
        self.vectors: dict[int, Tensor | None] = dict.fromkeys(vectors)  # [T, 3, d]
        self.pooled: dict[int, Tensor | None] = dict.fromkeys(pooled)  # [U, d]

    def embedded(self, stream: Stream) -> Stream:
        """Before the first layer."""
        self.lengths = stream.lengths
        if 0 in self.hidden:
            self.hidden[0] = stream.hidden
        return stream

    def between(self, index: int, before: Stream, after: Stream) -> Stream:
        """After layer `index` (from 0)."""
        if index + 1 in self.scores or index + 1 in self.vectors:
            parts = self.encoder.attention_inputs(index, before)
            if parts is None:
                raise UsageError("this family does not tell what its attention multiplies.")
            if index + 1 in self.scores:
                self.scores[index + 1] = scores(*parts[:2], before)
            if index + 1 in self.vectors:
                self.vectors[index + 1] = torch.stack([part.flatten(1) for part in parts], dim=1)
        if index + 1 in self.hidden:
            self.hidden[index + 1] = after.hidden
        if index + 1 in self.pooled:
            self.pooled[index + 1] = self._pool(after)
        return after

    def _pool(self, stream: Stream) -> Tensor:
        finished = self.encoder.finished(stream)
        if self.pooling is None:
            read = self.encoder.pooled(finished)
        else:
            read = pool(finished, self.pooling, "tagging" if self.encoder.tags_words else "")
        return read[stream.row.argsort()]

    def states(self, layer: int) -> Tensor:
        """The states after a layer: [T, d]."""
        return _there(self.hidden[layer])

    def attention(self, layer: int) -> Tensor:
        """The attention scores of a layer: [P, H]."""
        return _there(self.scores[layer])

    def attended(self, layer: int) -> Tensor:
        """Queries, keys and values of a layer side by side: [T, 3, d]."""
        return _there(self.vectors[layer])

    def of_units(self, layer: int) -> Tensor:
        """The pooled states of a layer: [U, d]."""
        return _there(self.pooled[layer])


def _there(found: Tensor | None) -> Tensor:
    assert found is not None, "the pass comes first"
    return found
