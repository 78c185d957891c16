"""DistilBERT's block: BERT's arithmetic under other names, without token types and without a pooler."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exitkit.engine.attention import attend
from exitkit.engine.encoders.base import Anatomy, AttentionEncoder, LayerCost, Part, Rows, by_pieces, split_heads
from exitkit.engine.stream import Stream, Tokens


class DistilBertEncoder(AttentionEncoder):
    """Encoders whose layers are DistilBERT `TransformerBlock`s."""

    model_types = frozenset({"distilbert"})
    cuts = True
    inner_name = "hidden_dim"

    @property
    def blocks(self) -> list[nn.Module]:  # noqa: D102
        return list(self.base.transformer.layer)

    def embed(self, tokens: Tokens) -> Tensor:  # noqa: D102
        hidden: Tensor = self.base.embeddings(tokens.ids[None], position_ids=tokens.position[None])[0]
        return hidden

    def project(self, block: Any, rows: Rows, asking: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        attention = block.attention
        query, key, value = attention.q_lin(asking), attention.k_lin(rows.hidden), attention.v_lin(rows.hidden)
        heads = attention.n_heads
        return split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)

    def attend(self, block: Any, query: Tensor, key: Tensor, value: Tensor, stream: Stream) -> Tensor:  # noqa: D102
        attention = block.attention
        return attend(query, key, value, stream, dropout=attention.dropout.p if attention.training else 0.0)

    def finish(self, block: Any, context: Tensor, asking: Tensor) -> Tensor:  # noqa: D102
        attended = block.sa_layer_norm(block.attention.out_lin(context) + asking)
        return by_pieces(lambda rows: block.output_layer_norm(block.ffn.ff_chunk(rows) + rows), attended)

    def anatomy(self) -> Anatomy:  # noqa: D102
        embeddings, stock = self.base.embeddings, self.stock
        rest = [
            Part(embeddings.word_embeddings, None, "hidden"),
            Part(embeddings.position_embeddings, None, "hidden"),
            Part(embeddings.LayerNorm, "hidden"),
        ]
        if not self.tags_words:
            rest.append(Part(stock.pre_classifier, "hidden", "hidden"))
        rest.append(Part(stock.classifier, None, "hidden"))
        return Anatomy(tuple(_parts(block) for block in self.base.transformer.layer), tuple(rest))

    def stock_head(self, pooled: Tensor) -> Tensor:  # noqa: D102
        stock = self.stock
        features = pooled if self.tags_words else nn.functional.relu(stock.pre_classifier(pooled))
        logits: Tensor = stock.classifier(stock.dropout(features))
        return logits

    def stock_head_modules(self) -> list[nn.Module]:  # noqa: D102
        stock = self.stock
        return [stock.classifier] if self.tags_words else [stock.pre_classifier, stock.classifier]

    def layer_cost(self, index: int) -> LayerCost:  # noqa: D102
        d, inner = self.width, int(self.stock.config.hidden_dim)
        return LayerCost(key=2 * d * d, query=2 * d * d + 2 * d * inner, pair=2 * d)


def _parts(block: Any) -> tuple[Part, ...]:
    """A `TransformerBlock`'s weights."""
    attention = block.attention
    return (
        Part(attention.q_lin, "heads", "hidden"),
        Part(attention.k_lin, "heads", "hidden"),
        Part(attention.v_lin, "heads", "hidden"),
        Part(attention.out_lin, "hidden", "heads"),
        Part(block.sa_layer_norm, "hidden"),
        Part(block.ffn.lin1, "inner", "hidden"),
        Part(block.ffn.lin2, "hidden", "inner"),
        Part(block.output_layer_norm, "hidden"),
    )
