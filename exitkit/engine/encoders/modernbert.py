"""ModernBERT's block: pre-norm, rotary positions, gated feed-forward, layers that look only at a window."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from exitkit.engine.attention import attend
from exitkit.engine.encoders.base import AttentionEncoder, LayerCost, Rows, by_pieces, mean_of_tokens, split_heads
from exitkit.engine.stream import Stream, Tokens


class ModernBertEncoder(AttentionEncoder):
    """Encoders whose layers are `ModernBertEncoderLayer`s."""

    model_types = frozenset({"modernbert"})

    @classmethod
    def refusal(cls, config: PreTrainedConfig) -> str | None:
        """Decoders, and rotary angles that depend on the longest text of a batch."""
        for kind, rope in (config.rope_parameters or {}).items():
            moving = rope["rope_type"]
            if moving == "longrope" or "dynamic" in moving:
                return (
                    f"its rope_type for {kind} is {moving!r}: angles depend on the longest text of a batch, so that "
                    "answers would depend on batch mates. Set it to one that does not, such as default, linear or yarn."
                )
        return super().refusal(config)

    @property
    def blocks(self) -> list[nn.Module]:  # noqa: D102
        return list(self.base.layers)

    def embed(self, tokens: Tokens) -> Tensor:  # noqa: D102
        hidden: Tensor = self.base.embeddings(input_ids=tokens.ids[None])[0]
        return hidden

    def project(self, block: Any, rows: Rows, asking: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One matrix makes all three, so queries are computed for every token."""
        q, k, v = split_heads(block.attn.Wqkv(block.attn_norm(rows.hidden)), 3).unbind(-2)  # each [T, d]
        heads = int(self.stock.config.num_attention_heads)
        cos, sin = self.base.rotary_emb(rows.hidden, rows.position[None], block.attention_type)
        q, k = apply_rotary_pos_emb(split_heads(q, heads), split_heads(k, heads), cos[0], sin[0])
        return q if rows.active is None else q.index_select(0, rows.active), k, split_heads(v, heads)

    def attend(self, block: Any, query: Tensor, key: Tensor, value: Tensor, stream: Stream) -> Tensor:  # noqa: D102
        attention = block.attn
        window = None if attention.sliding_window is None else self.stock.config.sliding_window
        dropout = attention.attention_dropout if attention.training else 0.0
        return attend(query, key, value, stream, window=window, dropout=dropout)

    def finish(self, block: Any, context: Tensor, asking: Tensor) -> Tensor:  # noqa: D102
        attended = asking + block.attn.out_drop(block.attn.Wo(context))
        return by_pieces(lambda rows: rows + block.mlp(block.mlp_norm(rows)), attended)

    def finished(self, stream: Stream) -> Stream:  # noqa: D102
        return stream.carrying(self.base.final_norm(stream.hidden))

    def pooled(self, stream: Stream, units: Tensor | None = None) -> Tensor:
        """The first token, or the mean of all where the config says so."""
        if self.tags_words or self.stock.config.classifier_pooling != "mean":
            return super().pooled(stream, units)
        mean = mean_of_tokens(stream)
        return mean if units is None else mean.index_select(0, units)

    def stock_head(self, pooled: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.stock.classifier(self.stock.drop(self.stock.head(pooled)))
        return logits

    def stock_head_modules(self) -> list[nn.Module]:  # noqa: D102
        return [self.stock.head, self.stock.classifier]

    def layer_cost(self, index: int) -> LayerCost:
        """Pairs outside a local layer's window are counted too: they are computed and masked."""
        d, inner = self.width, int(self.stock.config.intermediate_size)
        return LayerCost(key=3 * d * d, query=d * d + 3 * d * inner, pair=2 * d)
