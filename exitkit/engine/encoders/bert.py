"""The BERT block: post-norm, one dense attention, one feed-forward. BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from exitkit.engine.attention import attend
from exitkit.engine.encoders.base import (
    Anatomy,
    AttentionEncoder,
    LayerCost,
    Part,
    Rows,
    by_pieces,
    counted_positions,
    embedded,
    split_heads,
)
from exitkit.engine.stream import Stream, Tokens

COUNTING = frozenset({"roberta", "xlm-roberta", "camembert"})
"""Families whose positions count from the padding id + 1, over all other tokens."""


class BertEncoder(AttentionEncoder):
    """Encoders whose layers are `BertLayer`s under one of its names."""

    model_types = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})
    cuts = True

    @classmethod
    def refusal(cls, config: PreTrainedConfig) -> str | None:
        """Decoders, and kin of RoBERTa that do not say which id to count positions from."""
        if config.model_type in COUNTING and config.pad_token_id is None:
            return f"positions of a {config.model_type} count from pad_token_id + 1, and its config has none. Set it."
        return super().refusal(config)

    @property
    def blocks(self) -> list[nn.Module]:  # noqa: D102
        return list(self.base.encoder.layer)

    def embed(self, tokens: Tokens) -> Tensor:
        """RoBERTa and its kin count positions from the padding id + 1 on; the others from 0."""
        embeddings = self.base.embeddings
        padding = getattr(embeddings, "padding_idx", None)
        position = tokens.position if padding is None else counted_positions(tokens, padding)
        hidden = embedded(embeddings, tokens, position)
        if hasattr(self.base, "embeddings_project"):  # ELECTRA, when embeddings are narrower than layers
            hidden = self.base.embeddings_project(hidden)
        return hidden

    def project(self, block: Any, rows: Rows, asking: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        attention = block.attention.self
        query, key, value = attention.query(asking), attention.key(rows.hidden), attention.value(rows.hidden)
        heads = attention.num_attention_heads
        return split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)

    def attend(self, block: Any, query: Tensor, key: Tensor, value: Tensor, stream: Stream) -> Tensor:  # noqa: D102
        attention = block.attention.self
        return attend(query, key, value, stream, dropout=attention.dropout.p if attention.training else 0.0)

    def finish(self, block: Any, context: Tensor, asking: Tensor) -> Tensor:  # noqa: D102
        attended = block.attention.output(context, asking)
        return by_pieces(lambda rows: block.output(block.intermediate(rows), rows), attended)

    def anatomy(self) -> Anatomy:
        """In ELECTRA with narrow embeddings only what projects them is cut."""
        embeddings, classifier = self.base.embeddings, self.stock.classifier
        tables = [embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings]
        if hasattr(self.base, "embeddings_project"):
            rest = [*(Part(table) for table in tables), Part(embeddings.LayerNorm)]
            rest.append(Part(self.base.embeddings_project, "hidden"))
        else:
            rest = [*(Part(table, None, "hidden") for table in tables), Part(embeddings.LayerNorm, "hidden")]
        pooler = getattr(self.base, "pooler", None)
        if pooler is not None:
            rest.append(Part(pooler.dense, "hidden", "hidden"))
        if isinstance(classifier, nn.Linear):
            rest.append(Part(classifier, None, "hidden"))
        else:
            rest += [Part(classifier.dense, "hidden", "hidden"), Part(classifier.out_proj, None, "hidden")]
        return Anatomy(tuple(_parts(block) for block in self.base.encoder.layer), tuple(rest))

    def resized(self, layers: int, width: int, heads: int, inner: int) -> PreTrainedConfig:
        """ELECTRA's embeddings stay as wide as its layers where they were."""
        config = super().resized(layers, width, heads, inner)
        if getattr(config, "embedding_size", None) == self.width:
            config.embedding_size = width
        return config

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


def _parts(block: Any) -> tuple[Part, ...]:
    """A `BertLayer`'s weights."""
    attention, output = block.attention.self, block.attention.output
    return (
        Part(attention.query, "heads", "hidden"),
        Part(attention.key, "heads", "hidden"),
        Part(attention.value, "heads", "hidden"),
        Part(output.dense, "hidden", "heads"),
        Part(output.LayerNorm, "hidden"),
        Part(block.intermediate.dense, "inner", "hidden"),
        Part(block.output.dense, "hidden", "inner"),
        Part(block.output.LayerNorm, "hidden"),
    )
