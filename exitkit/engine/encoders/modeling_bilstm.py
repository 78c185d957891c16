"""A bidirectional LSTM as a model of transformers.

transformers has no such family, so its folders carry this file with them: plain transformers then loads them with
`trust_remote_code=True`, where exitkit is not installed too. Hence it imports torch and transformers only. After
`import exitkit.engine.encoders` they load without that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import can_return_tuple


class BiLSTMConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is not typed
    """The shape of a BiLSTM.

    `hidden_size` is the width of every layer's states, half of it of each direction. Tokens of `embedding_size`
    features are projected to it where it is another number. `hidden_dropout_prob` is the dropout of what every layer
    reads, and of the head's. Raises ValueError: a width that has no half.
    """

    model_type = "exitkit-bilstm"

    vocab_size: int = 30522
    embedding_size: int = 384
    hidden_size: int = 384
    num_hidden_layers: int = 2
    hidden_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % 2 or self.hidden_size < 2:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, and each direction of a BiLSTM has half of it; use an even number"
            )


class BiLSTMEmbeddings(nn.Module):
    """Token embeddings, normalised, as wide as the layers.

    Normalised, because an LSTM has no norm of its own, and tables that come from elsewhere have a scale of theirs.
    """

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        wide = config.embedding_size == config.hidden_size
        self.projection = nn.Identity() if wide else nn.Linear(config.embedding_size, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """States [..., d] of token ids [...]."""
        states: Tensor = self.projection(self.norm(self.tokens(ids)))
        return states


class BiLSTMLayer(nn.Module):
    """Dropout, then an LSTM in both directions, whose states stand side by side."""

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size // 2, bidirectional=True)

    def forward(self, states: Tensor, sizes: Tensor) -> Tensor:
        """States [T, d] after the layer, from those before it in the order of `steps`; `sizes` as in PackedSequence."""
        packed: PackedSequence = self.lstm(PackedSequence(self.dropout(states), sizes))[0]
        return packed.data


def steps(place: Tensor, rank: Tensor, sequences: int) -> Tensor:
    """The order [T] in which a PackedSequence holds tokens: all first ones, then all second ones, and so on.

    Args:
        place: [T] of each token in its own sequence, from 0.
        rank: [T] number of its sequence, when longer ones come first.
        sequences: how many there are.
    """
    return (place * sequences + rank).argsort()


class BiLSTMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the models below share."""

    config_class = BiLSTMConfig
    base_model_prefix = "bilstm"

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        table: nn.Module = self.base_model.embeddings.tokens
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.base_model.embeddings.tokens = value


class BiLSTMModel(BiLSTMPreTrainedModel):
    """Embeddings and layers."""

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        self.embeddings = BiLSTMEmbeddings(config)
        self.layers = nn.ModuleList(BiLSTMLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,  # token types: texts of a pair are told apart by what stands between them
    ) -> BaseModelOutput:
        """States [B, N, d] of a padded batch; those of padding are 0, wherever it stands.

        Args:
            input_ids: [B, N].
            attention_mask: [B, N], 0 at padding; None = nothing is padded.
            output_hidden_states: whether to give the states before the first and after each layer.
        """
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        lengths = mask.sum(dim=1)
        rank = lengths.argsort(descending=True, stable=True).argsort()
        row, column = mask.nonzero(as_tuple=True)
        place = (mask.cumsum(dim=1) - 1)[row, column]
        order = steps(place, rank[row], len(mask))
        row, column = row[order], column[order]
        sizes = torch.bincount(place).cpu()
        states = self.embeddings(input_ids[row, column])
        found = [states]
        for layer in self.layers:
            found.append(layer(found[-1], sizes))
        if not (output_hidden_states or self.config.output_hidden_states):
            found = found[-1:]
        padded = tuple(one.new_zeros(*mask.shape, one.shape[-1]).index_put((row, column), one) for one in found)
        return BaseModelOutput(last_hidden_state=padded[-1], hidden_states=padded if len(padded) > 1 else None)


class BiLSTMForSequenceClassification(BiLSTMPreTrainedModel):
    """Answers from the mean of a text's states."""

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        self.bilstm = BiLSTMModel(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def answer(self, mean: Tensor) -> Tensor:
        """Logits [B, C] from means [B, d]."""
        logits: Tensor = self.classifier(self.dropout(torch.tanh(self.dense(mean))))
        return logits

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits [B, C] of a padded batch; with `labels` [B] or [B, C] the loss of its problem type."""
        found = self.bilstm(input_ids, attention_mask, output_hidden_states=output_hidden_states)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = found.last_hidden_state.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        logits = self.answer(mean)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)


class BiLSTMForTokenClassification(BiLSTMPreTrainedModel):
    """Answers token by token."""

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        self.bilstm = BiLSTMModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def answer(self, states: Tensor) -> Tensor:
        """Logits [..., C] from states [..., d]."""
        logits: Tensor = self.classifier(self.dropout(states))
        return logits

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> TokenClassifierOutput:
        """Logits [B, N, C] of a padded batch; with `labels` [B, N] the cross-entropy."""
        found = self.bilstm(input_ids, attention_mask, output_hidden_states=output_hidden_states)
        logits = self.answer(found.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)
