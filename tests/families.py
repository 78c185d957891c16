"""Tiny random models of every family, and what parity with stock transformers means."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from exitkit.engine.heads import Pooling
from exitkit.engine.loop import every_exit
from exitkit.engine.model import ExitModel
from exitkit.plugins import installed
from exitkit.training import parity

REGISTRY = installed()  # asking anew takes longer than these models do
LENGTHS = parity.LENGTHS
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FAMILIES: dict[str, dict] = {
    "bert": {"model_type": "bert", **QUIET},
    "roberta": {"model_type": "roberta", "pad_token_id": 1, **QUIET},
    "xlm-roberta": {"model_type": "xlm-roberta", "pad_token_id": 1, **QUIET},
    "camembert": {"model_type": "camembert", "pad_token_id": 1, **QUIET},
    "electra": {"model_type": "electra", "embedding_size": 32, **QUIET},
    "electra with narrow embeddings": {"model_type": "electra", "embedding_size": 16, **QUIET},
    "distilbert": {
        "model_type": "distilbert",
        "dim": 32,
        "n_layers": 4,
        "n_heads": 4,
        "hidden_dim": 48,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "albert": {"model_type": "albert", "embedding_size": 16, "classifier_dropout_prob": 0.0, **QUIET},
    "albert with two groups of two": {
        "model_type": "albert",
        "embedding_size": 16,
        "num_hidden_groups": 2,
        "inner_group_num": 2,
        "classifier_dropout_prob": 0.0,
        **QUIET,
    },
    "deberta": {
        "model_type": "deberta",
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "pooler_hidden_size": 32,
        **QUIET,
    },
    "deberta-v2 with a convolution": {
        "model_type": "deberta-v2",
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 6,
        "conv_kernel_size": 3,
        "norm_rel_ebd": "layer_norm",
        "pooler_hidden_size": 32,
        **QUIET,
    },
    "deberta-v3": {
        "model_type": "deberta-v2",
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 6,
        "share_att_key": True,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
        **QUIET,
    },
    "mpnet": {"model_type": "mpnet", "pad_token_id": 1, **QUIET},
    "bilstm": {"model_type": "exitkit-bilstm", "embedding_size": 32, **QUIET},
    "bilstm with narrow embeddings": {"model_type": "exitkit-bilstm", "embedding_size": 16, "pad_token_id": 1, **QUIET},
    "modernbert": {"model_type": "modernbert", "local_attention": 8, "pad_token_id": 0, "classifier_pooling": "cls"},
    "modernbert pooled by mean": {
        "model_type": "modernbert",
        "local_attention": 8,
        "pad_token_id": 0,
        "classifier_pooling": "mean",
    },
}


def config(family: str, **fields: object) -> PreTrainedConfig:
    """A tiny config of a family, with some `fields` of it."""
    given = {**SMALL, **FAMILIES[family], **fields}
    if given["model_type"] == "distilbert":
        given = {key: value for key, value in given.items() if key not in ("hidden_size", "num_hidden_layers")}
    return AutoConfig.for_model(**given)


def stock(
    family: str, tags: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64, **fields: object
) -> PreTrainedModel:
    """A model of a family, with some `fields` of its config, with weights N(0, 0.3²), in evaluation mode."""
    return parity.random_stock(config(family, **fields), tags, seed, dtype)


def with_exits(model: PreTrainedModel) -> ExitModel:
    """Exits at every layer of a stock model."""
    layers = model.config.num_hidden_layers
    pooling: Pooling = "cls" if type(model).__name__.endswith("ForTokenClassification") else "mean"
    made = ExitModel(model, REGISTRY.encoder(model.config.model_type), range(1, layers + 1), pooling)
    return made.to(next(model.parameters()).dtype).eval()


def batch(model: PreTrainedModel, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids of these lengths, padded as the family pads."""
    return parity.random_rows(model, lengths, seed)


def difference(model: PreTrainedModel, rows: dict[str, Tensor]) -> float:
    """Largest difference between the last exit and the stock model's own logits."""
    with torch.no_grad():
        ours = every_exit(with_exits(model), rows)[-1]
        theirs = model(**rows).logits
    return float((ours - theirs).abs().max())
