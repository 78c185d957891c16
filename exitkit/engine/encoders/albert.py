"""ALBERT: one block shape whose weights many layers share, behind narrow embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exitkit.engine.attention import attend
from exitkit.engine.encoders.base import Encoder, LayerCost, active_states, by_pieces, split_heads, update_active
from exitkit.engine.stream import Stream, Tokens


class AlbertEncoder(Encoder):
    """Encoders whose layers are groups of `AlbertLayer`s.

    Layer i runs group ⌊i · groups ÷ layers⌋, which may hold several blocks one after the other: an exit sits behind a
    whole group, as a layer counts in the config.
    """

    model_types = frozenset({"albert"})

    @property
    def blocks(self) -> list[nn.Module]:
        """One entry per layer; layers of a group are the same module."""
        layers, groups = self.stock.config.num_hidden_layers, self.base.encoder.albert_layer_groups
        return [groups[int(index / (layers / len(groups)))] for index in range(layers)]

    def embed(self, tokens: Tokens) -> Tensor:
        """Narrow embeddings, projected to the width of the layers."""
        narrow = self.base.embeddings(
            input_ids=tokens.ids[None],
            token_type_ids=None if tokens.types is None else tokens.types[None],
            position_ids=tokens.position[None],
        )[0]
        hidden: Tensor = self.base.encoder.embedding_hidden_mapping_in(narrow)
        return hidden

    def layer(self, index: int, stream: Stream) -> Tensor:  # noqa: D102
        group: Any = self.blocks[index]
        for block in group.albert_layers:
            stream = stream.carrying(_block(block, stream))
        return stream.hidden

    def stock_head(self, pooled: Tensor) -> Tensor:  # noqa: D102
        if not self.tags_words:
            pooled = self.base.pooler_activation(self.base.pooler(pooled))
        logits: Tensor = self.stock.classifier(self.stock.dropout(pooled))
        return logits

    def stock_head_modules(self) -> list[nn.Module]:  # noqa: D102
        return [part for part in (self.base.pooler, self.stock.classifier) if part is not None]

    def layer_cost(self, index: int) -> LayerCost:
        """All blocks of the layer's group. The projection of the embeddings is part of no layer."""
        d, inner, blocks = self.width, int(self.stock.config.intermediate_size), int(self.stock.config.inner_group_num)
        return LayerCost(key=blocks * 2 * d * d, query=blocks * (2 * d * d + 2 * d * inner), pair=blocks * 2 * d)


def _block(block: Any, stream: Stream) -> Tensor:
    """States [T, d] after one `AlbertLayer`."""
    attention = block.attention
    heads = attention.num_attention_heads
    asking = active_states(stream)
    context = attend(
        split_heads(attention.query(asking), heads),
        split_heads(attention.key(stream.hidden), heads),
        split_heads(attention.value(stream.hidden), heads),
        stream,
        dropout=attention.attention_dropout.p if attention.training else 0.0,
    )
    attended = attention.LayerNorm(asking + attention.output_dropout(attention.dense(context)))
    new = by_pieces(lambda rows: block.full_layer_layer_norm(block.ff_chunk(rows) + rows), attended)
    return update_active(stream, new)
