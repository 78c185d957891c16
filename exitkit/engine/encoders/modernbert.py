"""ModernBERT's block: pre-norm, rotary positions, gated feed-forward, layers that look only at a window."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from exitkit.engine.attention import attend
from exitkit.engine.encoders.base import Encoder, LayerCost, by_pieces, mean_of_tokens, split_heads, update_active
from exitkit.engine.stream import Stream, Tokens


class ModernBertEncoder(Encoder):
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

    def layer(self, index: int, stream: Stream) -> Tensor:  # noqa: D102
        block = self.base.layers[index]
        attention = block.attn
        hidden, active = stream.hidden, stream.active
        q, k, v = split_heads(attention.Wqkv(block.attn_norm(hidden)), 3).unbind(-2)  # each [T, d]
        heads = int(self.stock.config.num_attention_heads)
        cos, sin = self.base.rotary_emb(hidden, stream.position[None], block.attention_type)
        q, k = apply_rotary_pos_emb(split_heads(q, heads), split_heads(k, heads), cos[0], sin[0])
        context = attend(
            q if active is None else q.index_select(0, active),
            k,
            split_heads(v, heads),
            stream,
            window=self.stock.config.sliding_window if attention.sliding_window is not None else None,
            dropout=attention.attention_dropout if attention.training else 0.0,
        )
        asking = hidden if active is None else hidden.index_select(0, active)
        attended = asking + attention.out_drop(attention.Wo(context))
        return update_active(stream, by_pieces(lambda rows: rows + block.mlp(block.mlp_norm(rows)), attended))

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
        # q is computed for every token, because one matrix makes q, k and v.
        return LayerCost(key=3 * d * d, query=d * d + 3 * d * inner, pair=2 * d)
