"""DistilBERT's block: BERT's arithmetic under other names, without token types and without a pooler."""

from __future__ import annotations

from torch import Tensor, nn

from exitkit.attention import attend
from exitkit.encoders.base import (
    Encoder,
    LayerCost,
    active_states,
    split_heads,
    update_active,
)
from exitkit.stream import Stream, Tokens


class DistilBertEncoder(Encoder):
    """Encoders whose layers are DistilBERT `TransformerBlock`s."""

    model_types = frozenset({"distilbert"})

    @property
    def blocks(self) -> list[nn.Module]:  # noqa: D102
        return list(self.base.transformer.layer)

    def embed(self, tokens: Tokens) -> Tensor:  # noqa: D102
        hidden: Tensor = self.base.embeddings(tokens.ids[None], position_ids=tokens.position[None])[0]
        return hidden

    def layer(self, index: int, stream: Stream) -> Tensor:  # noqa: D102
        block = self.base.transformer.layer[index]
        attention = block.attention
        asking = active_states(stream)
        context = attend(
            split_heads(attention.q_lin(asking), attention.n_heads),
            split_heads(attention.k_lin(stream.hidden), attention.n_heads),
            split_heads(attention.v_lin(stream.hidden), attention.n_heads),
            stream,
            dropout=attention.dropout.p if attention.training else 0.0,
        )
        attended = block.sa_layer_norm(attention.out_lin(context) + asking)
        return update_active(stream, block.output_layer_norm(block.ffn(attended) + attended))

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
