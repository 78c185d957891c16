"""What configs and texts of real checkpoints change in the stock answer changes ours alike, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import FAMILIES, LENGTHS, batch, difference, stock
from torch import Tensor
from transformers import PreTrainedModel

from exitkit.engine import stream
from exitkit.engine.encoders import base, bert, padded

EXACT = 1e-9

BERT_FIELDS: list[dict] = [
    {"hidden_act": "relu"},
    {"hidden_act": "gelu_new"},
    {"layer_norm_eps": 0.1},
    {"type_vocab_size": 1},
    {"type_vocab_size": 4},
    {"num_attention_heads": 1},
    {"chunk_size_feed_forward": 1},
    {"add_cross_attention": False, "is_decoder": False, "position_embedding_type": "absolute"},
]
OFFSETS: list[dict] = [{"pad_token_id": 0}, {"pad_token_id": 4}, {"pad_token_id": 9, "max_position_embeddings": 41}]
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
FIELDS: dict[str, list[dict]] = {
    "bert": [*BERT_FIELDS, {"pad_token_id": 7}, {"pad_token_id": None}, {"max_position_embeddings": 31}],
    "roberta": [*BERT_FIELDS, *OFFSETS],
    "xlm-roberta": [{"hidden_act": "relu"}, {"type_vocab_size": 1}, *OFFSETS],
    "camembert": [{"hidden_act": "relu"}, {"type_vocab_size": 1}, *OFFSETS],
    "electra": [*BERT_FIELDS, {"embedding_size": 8}, {"embedding_size": 48}, {"pad_token_id": 7}],
    "distilbert": [
        {"activation": "relu"},
        {"sinusoidal_pos_embds": True},
        {"n_heads": 1},
        {"pad_token_id": 7},
        {"chunk_size_feed_forward": 1},
    ],
    "albert": [
        {"hidden_act": "relu"},
        {"layer_norm_eps": 0.1},
        {"type_vocab_size": 1},
        {"embedding_size": 32},
        {"embedding_size": 48},
        {"num_hidden_groups": 3},
        {"inner_group_num": 3},
        {"pad_token_id": 7},
        {"chunk_size_feed_forward": 1},
    ],
    "modernbert": [
        {"local_attention": 1},
        {"local_attention": 2},
        {"local_attention": 7},
        {"local_attention": 200},
        {"global_attn_every_n_layers": 2},
        {"layer_types": ["sliding_attention"] * 4},
        {"layer_types": ["full_attention"] * 4},
        {"rope_parameters": {"full_attention": ROPE, "sliding_attention": {**ROPE, "rope_theta": 100.0}}},
        {
            "rope_parameters": {
                "full_attention": {**ROPE, "rope_type": "linear", "factor": 4.0},
                "sliding_attention": ROPE,
            }
        },
        {
            "rope_parameters": {
                "full_attention": {
                    **ROPE,
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
                "sliding_attention": ROPE,
            }
        },
        {"global_rope_theta": 100.0, "local_rope_theta": 50.0},
        {"norm_eps": 0.1},
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        {"hidden_activation": "relu", "classifier_activation": "silu"},
        {"pad_token_id": 7},
    ],
    "deberta": [
        {"pos_att_type": ["c2p"]},
        {"relative_attention": False},
        {"max_relative_positions": 6},
        {"position_biased_input": False},
        {"type_vocab_size": 2},
        {"layer_norm_eps": 0.1},
        {"pooler_hidden_act": "tanh"},
    ],
    "deberta-v3": [
        {"pos_att_type": ["p2c"]},
        {"relative_attention": False},
        {"share_att_key": False},
        {"position_buckets": -1, "max_relative_positions": 6},
        {"position_biased_input": True},
        {"norm_rel_ebd": "none"},
        {"type_vocab_size": 2},
        {"embedding_size": 16},
        {"hidden_act": "relu", "pooler_hidden_act": "tanh"},
        {"conv_kernel_size": 3, "conv_act": "gelu"},
    ],
    "mpnet": [
        {"hidden_act": "relu"},
        {"layer_norm_eps": 0.1},
        {"relative_attention_num_buckets": 64},
        {"pad_token_id": 0},
    ],
    "bilstm": [{"embedding_size": 48}, {"layer_norm_eps": 0.1}, {"pad_token_id": 7}],
}
"""By family, fields that configs of checkpoints have and those of `FAMILIES` do not: they change the stock answer."""


def tolerance(family: str) -> float:
    """Stock ModernBERT turns its queries and keys in fp32 whatever the model's format, so it is no float64 model."""
    return 2e-5 if family.startswith("modernbert") else EXACT


def written_out(model: PreTrainedModel) -> dict[str, Tensor]:
    """Rows whose texts hold the padding token themselves: first, last, and twice in a row."""
    rows = batch(model)
    for padding in {1, model.config.pad_token_id or 0}:  # MPNet's is 1 whatever its config says
        for row, place in enumerate((0, 6, 3, 2, 30)):
            rows["input_ids"][row, place : place + 2] = padding
    return rows


@pytest.mark.parametrize(
    ("family", "fields"),
    [(family, fields) for family, variants in FIELDS.items() for fields in variants],
    ids=lambda part: part if isinstance(part, str) else ",".join(part),
)
def test_fields_of_a_config_change_our_answer_as_they_change_the_stock_models(family: str, fields: dict) -> None:
    model = stock(family, **fields)
    assert difference(model, written_out(model)) <= tolerance(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padding_token_that_is_written_out_in_a_text_is_read_as_the_stock_model_reads_it(family: str) -> None:
    model = stock(family)
    rows = written_out(model)
    assert difference(model, rows) <= tolerance(family)
    alone = {name: value[2:3, : LENGTHS[2]] for name, value in rows.items()}
    assert difference(model, alone) <= tolerance(family), "nothing is padded"


def padding_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bert, padded):
        monkeypatch.setattr(module, "counted_positions", lambda tokens, padding: tokens.position + padding + 1)


def counting_through_all_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    right = base.counted_positions

    def counted(tokens, padding):
        together = torch.arange(len(tokens.ids))
        return right(stream.Tokens(tokens.ids, tokens.types, together), padding) % 60

    monkeypatch.setattr(bert, "counted_positions", counted)


WRITTEN_OUT: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("roberta", padding_that_counts),
    ("xlm-roberta", padding_that_counts),
    ("camembert", padding_that_counts),
    ("mpnet", padding_that_counts),
    ("roberta", counting_through_all_sequences),
]
"""Bugs that show where a text holds the padding token."""


@pytest.mark.parametrize(("family", "bug"), WRITTEN_OUT, ids=lambda part: getattr(part, "__name__", part))
def test_parity_catches_positions_that_padding_in_texts_makes_wrong(
    family: str, bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stock(family)
    rows = written_out(model)
    assert difference(model, rows) <= EXACT
    bug(monkeypatch)
    assert difference(model, rows) > 100 * EXACT
