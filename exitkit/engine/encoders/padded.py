"""Families whose attention exitkit does not own: stock layers on padded batches, between packed streams.

Their attention mixes positions into its scores in ways of its own, and takes queries and keys from one tensor.
Sequences can exit and skip layers; single words cannot halt.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.containment import contain
from exitkit.engine.attention import grid
from exitkit.engine.encoders.base import Encoder, LayerCost, counted_positions, embedded, must_be
from exitkit.engine.stream import Stream, Tokens


class PaddedEncoder(Encoder):
    """Pads the stream to a rectangle, runs the stock layer and packs its answer, once per layer."""

    native = False
    words_halt = False

    def __init_subclass__(cls, **more: Any) -> None:
        """As in every family."""
        super().__init_subclass__(**more)
        contain(cls, "family", PaddedEncoder, {"padded_layer": must_be(lambda _, index, hidden, real: hidden.shape)})

    @property
    def blocks(self) -> list[nn.Module]:  # noqa: D102
        return list(self.base.encoder.layer)

    def layer(self, index: int, stream: Stream) -> Tensor:
        """Cells of padding hold zeros, as in stock models behind their embeddings, and are masked."""
        assert stream.active is None, "schedules that halt words are refused where words_halt is False"
        lengths = stream.lengths
        if lengths[0] == lengths[-1]:  # in order of length, so they are all alike
            return self.padded_layer(index, stream.hidden.view(len(lengths), lengths[0], -1), None).flatten(0, 1)
        cells, real = grid(stream.bounds, lengths[-1])
        rectangle = stream.hidden[cells] * real[:, :, None]
        return self.padded_layer(index, rectangle, real)[real]

    @abstractmethod
    def padded_layer(self, index: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        """The stock layer `index` (from 0) on [S, longest, d]; `real` [S, longest] is None when nothing is padded."""


class DebertaEncoder(PaddedEncoder):
    """DeBERTa, DeBERTa-v2 and DeBERTa-v3: disentangled attention over content and relative positions."""

    model_types = frozenset({"deberta", "deberta-v2"})

    def embed(self, tokens: Tokens) -> Tensor:  # noqa: D102
        return embedded(self.base.embeddings, tokens, tokens.position)

    def padded_layer(self, index: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        """In v2 with a convolution, its output joins that of the first layer.

        The first DeBERTa's attention fills bf16 scores with the least fp32 number when it is trained in bf16, and
        fails; so its layers are left out of mixed precision.
        """
        kind = hidden.device.type
        if self.stock.config.model_type == "deberta" and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.padded_layer(index, hidden.float(), real)
        encoder = self.base.encoder
        mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device) if real is None else real.long()
        new: Tensor = encoder.layer[index](
            hidden,
            encoder.get_attention_mask(mask),
            relative_pos=encoder.get_rel_pos(hidden),
            rel_embeddings=encoder.get_rel_embedding(),
        )[0]
        conv = getattr(encoder, "conv", None)
        if index == 0 and conv is not None:
            new = conv(hidden, new, mask)
        return new

    def stock_head(self, pooled: Tensor) -> Tensor:
        """The stock pooler takes the first of a row of tokens, so it gets rows of one."""
        features = pooled if self.tags_words else self.stock.pooler(pooled[:, None])
        logits: Tensor = self.stock.classifier(self.stock.dropout(features))
        return logits

    def stock_head_modules(self) -> list[nn.Module]:  # noqa: D102
        return [self.stock.classifier] if self.tags_words else [self.stock.pooler, self.stock.classifier]

    def layer_cost(self, index: int) -> LayerCost:
        """Content to position and position to content are counted where the config has them.

        With buckets (v2, v3) each token is multiplied with all of them, 2 · span · d; without (v1), with the positions
        of its own sequence. Projecting the relative positions, once per batch, is not counted.
        """
        config, d = self.stock.config, self.width
        inner = int(config.intermediate_size)
        kinds = set(config.pos_att_type or ()) if getattr(config, "relative_attention", False) else set()
        key, query, pair = 2 * d * d, 2 * d * d + 2 * d * inner, 2 * d
        if config.model_type == "deberta":
            return LayerCost(key=key, query=query, pair=pair + 2 * d * len(kinds & {"c2p", "p2c"}))
        encoder = self.base.encoder
        span = getattr(encoder, "position_buckets", 0)
        span = span if span > 0 else getattr(encoder, "max_relative_positions", 0)
        return LayerCost(
            key=key + ("p2c" in kinds) * 2 * span * d, query=query + ("c2p" in kinds) * 2 * span * d, pair=pair
        )


class MPNetEncoder(PaddedEncoder):
    """MPNet: BERT's block with a learned bias for relative positions."""

    model_types = frozenset({"mpnet"})

    def embed(self, tokens: Tokens) -> Tensor:
        """Positions count from the padding id + 1."""
        embeddings = self.base.embeddings
        position = counted_positions(tokens, embeddings.padding_idx)
        hidden: Tensor = embeddings(input_ids=tokens.ids[None], position_ids=position[None])[0]
        return hidden

    def padded_layer(self, index: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        """The bias depends on positions only, so one row of it serves all sequences."""
        encoder = self.base.encoder
        mask = None
        if real is not None:
            mask = torch.zeros(real.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(~real, torch.finfo(hidden.dtype).min)[:, None, None]
        new: Tensor = encoder.layer[index](hidden, mask, encoder.compute_position_bias(hidden[:1]))[0]
        return new

    def stock_head(self, pooled: Tensor) -> Tensor:
        """The stock head for sequences takes the first of a row of tokens, so it gets rows of one."""
        logits: Tensor = self.stock.classifier(self.stock.dropout(pooled) if self.tags_words else pooled[:, None])
        return logits

    def stock_head_modules(self) -> list[nn.Module]:  # noqa: D102
        return [self.stock.classifier]

    def layer_cost(self, index: int) -> LayerCost:  # noqa: D102
        d, inner = self.width, int(self.stock.config.intermediate_size)
        return LayerCost(key=2 * d * d, query=2 * d * d + 2 * d * inner, pair=2 * d)
