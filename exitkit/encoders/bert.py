"""The BERT block: post-norm, one dense attention, one feed-forward. BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA."""

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


class BertEncoder(Encoder):
    """Encoders whose layers are `BertLayer`s under one of its names."""

    model_types = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})

    @property
    def blocks(self) -> list[nn.Module]:  # noqa: D102
        return list(self.base.encoder.layer)

    def embed(self, tokens: Tokens) -> Tensor:
        """RoBERTa and its kin number positions from the padding id + 1 on; the others from 0."""
        embeddings = self.base.embeddings
        offset = getattr(embeddings, "padding_idx", None)
        position = tokens.position if offset is None else tokens.position + offset + 1
        hidden: Tensor = embeddings(
            input_ids=tokens.ids[None],
            token_type_ids=None if tokens.types is None else tokens.types[None],
            position_ids=position[None],
        )[0]
        if hasattr(self.base, "embeddings_project"):  # ELECTRA, when embeddings are narrower than layers
            hidden = self.base.embeddings_project(hidden)
        return hidden

    def layer(self, index: int, stream: Stream) -> Tensor:  # noqa: D102
        block = self.base.encoder.layer[index]
        attention = block.attention.self
        heads = attention.num_attention_heads
        asking = active_states(stream)
        context = attend(
            split_heads(attention.query(asking), heads),
            split_heads(attention.key(stream.hidden), heads),
            split_heads(attention.value(stream.hidden), heads),
            stream,
            dropout=attention.dropout.p if attention.training else 0.0,
        )
        attended = block.attention.output(context, asking)
        return update_active(stream, block.output(block.intermediate(attended), attended))

    def stock_head(self, pooled: Tensor) -> Tensor:
        """Stock heads for sequences take the first of a row of tokens, so they get rows of one."""
        if self.tags_words:
            features = self.stock.dropout(pooled)
        elif getattr(self.base, "pooler", None) is not None:  # in BERT; its kin pool inside the head
            features = self.stock.dropout(self.base.pooler(pooled[:, None]))
        else:
            features = pooled[:, None]
        logits: Tensor = self.stock.classifier(features)
        return logits

    def stock_head_modules(self) -> list[nn.Module]:  # noqa: D102
        pooler = getattr(self.base, "pooler", None)
        return [part for part in (pooler, self.stock.classifier) if part is not None]

    def layer_cost(self, index: int) -> LayerCost:  # noqa: D102
        d, inner = self.width, int(self.stock.config.intermediate_size)
        return LayerCost(key=2 * d * d, query=2 * d * d + 2 * d * inner, pair=2 * d)
