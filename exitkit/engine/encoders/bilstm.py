"""The BiLSTM's layer over a packed stream, and how transformers comes to know the family."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from exitkit.engine.encoders.base import Encoder, LayerCost, mean_of_tokens
from exitkit.engine.encoders.modeling_bilstm import (
    BiLSTMConfig,
    BiLSTMForSequenceClassification,
    BiLSTMForTokenClassification,
    BiLSTMModel,
    steps,
)
from exitkit.engine.stream import Stream, Tokens


class BiLSTMEncoder(Encoder):
    """Encoders whose layers are LSTMs in both directions. Every token waits for its neighbours: no word can halt."""

    model_types = frozenset({BiLSTMConfig.model_type})
    words_halt = False

    @property
    def blocks(self) -> list[nn.Module]:  # noqa: D102
        return list(self.base.layers)

    def embed(self, tokens: Tokens) -> Tensor:  # noqa: D102
        hidden: Tensor = self.base.embeddings(tokens.ids)
        return hidden

    def layer(self, index: int, stream: Stream) -> Tensor:
        """Of all tokens at once, step by step of their sequences."""
        assert stream.active is None, "schedules that halt words are refused where words_halt is False"
        order, sizes = _order(stream.lengths, stream.hidden.device)
        new: Tensor = self.base.layers[index](stream.hidden.index_select(0, order), sizes)
        return torch.empty_like(new).index_copy(0, order, new)

    def pooled(self, stream: Stream, units: Tensor | None = None) -> Tensor:
        """The mean of a text's tokens, and the first piece of a word."""
        if self.tags_words:
            return super().pooled(stream, units)
        mean = mean_of_tokens(stream)
        return mean if units is None else mean.index_select(0, units)

    def stock_head(self, pooled: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.stock.answer(pooled)
        return logits

    def stock_head_modules(self) -> list[nn.Module]:  # noqa: D102
        return [self.stock.classifier] if self.tags_words else [self.stock.dense, self.stock.classifier]

    def layer_cost(self, index: int) -> LayerCost:
        """Four gates of d/2 units in each direction read a token and the state before: 2 · 4 · d/2 · (d + d/2).

        Projecting narrow embeddings is part of no layer.
        """
        return LayerCost(key=6 * self.width**2, query=0, pair=0)


@lru_cache(maxsize=64)
def _order(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """In what order a PackedSequence has the tokens of a stream, and its sizes on the host; the same for all layers.

    A stream is in order of length, shorter sequences first, so ranks are its numbers from the end.
    """
    with torch.inference_mode(False):  # training may use what prediction has computed
        counts = torch.tensor(lengths)
        rank = torch.arange(len(lengths)).flip(0).repeat_interleave(counts)
        place = torch.cat([torch.arange(length) for length in lengths])
        sizes = (counts[:, None] > torch.arange(lengths[-1])).sum(dim=0)
        return steps(place, rank, len(lengths)).to(device), sizes


AutoConfig.register(BiLSTMConfig.model_type, BiLSTMConfig)
BiLSTMConfig.register_for_auto_class()
for _auto, _model in (
    (AutoModel, BiLSTMModel),
    (AutoModelForSequenceClassification, BiLSTMForSequenceClassification),
    (AutoModelForTokenClassification, BiLSTMForTokenClassification),
):
    _auto.register(BiLSTMConfig, _model)
    _model.register_for_auto_class(_auto.__name__)  # saving copies the file that defines it
