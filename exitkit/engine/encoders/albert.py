"""ALBERT: one block shape whose weights many layers share, behind narrow embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exitkit.engine.attention import attend
from exitkit.engine.encoders.base import AttentionEncoder, LayerCost, Rows, by_pieces, embedded, split_heads
from exitkit.engine.stream import Stream, Tokens


class AlbertEncoder(AttentionEncoder):
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
        narrow = embedded(self.base.embeddings, tokens, tokens.position)
        hidden: Tensor = self.base.encoder.embedding_hidden_mapping_in(narrow)
        return hidden

    def blocks_of(self, index: int) -> list[nn.Module]:
        """All blocks of the layer's group."""
        group: Any = self.blocks[index]
        return list(group.albert_layers)

    def project(self, block: Any, rows: Rows, asking: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        attention = block.attention
        query, key, value = attention.query(asking), attention.key(rows.hidden), attention.value(rows.hidden)
        heads = attention.num_attention_heads
        return split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)

    def attend(self, block: Any, query: Tensor, key: Tensor, value: Tensor, stream: Stream) -> Tensor:  # noqa: D102
        attention = block.attention
        return attend(query, key, value, stream, dropout=attention.attention_dropout.p if attention.training else 0.0)

    def finish(self, block: Any, context: Tensor, asking: Tensor) -> Tensor:  # noqa: D102
        attention = block.attention
        attended = attention.LayerNorm(asking + attention.output_dropout(attention.dense(context)))
        return by_pieces(lambda rows: block.full_layer_layer_norm(block.ff_chunk(rows) + rows), attended)

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
