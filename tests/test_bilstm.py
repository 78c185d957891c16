"""The family that exitkit brings itself: what its layers compute, and that plain transformers reads it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from families import LENGTHS, batch, stock
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    dynamic_module_utils,
)

from exitkit.engine.encoders.modeling_bilstm import BiLSTMConfig


def alone(model, ids: Tensor) -> Tensor:
    """States [n, d] of a single sequence, by torch's own LSTM without any packing."""
    states = model.bilstm.embeddings(ids)
    for layer in model.bilstm.layers:
        states = layer.lstm(states[:, None])[0][:, 0]
    return states


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_gets_what_each_sequence_gets_alone_on_whichever_side_padding_stands(side: str) -> None:
    model, tagger = stock("bilstm with narrow embeddings"), stock("bilstm with narrow embeddings", tags=True)
    rows = batch(model)
    real = [slice(0, n) if side == "right" else slice(31 - n, 31) for n in LENGTHS]
    if side == "left":
        rows = {
            name: torch.stack([value[s].roll(31 - n, 0) for s, n in enumerate(LENGTHS)]) for name, value in rows.items()
        }
    with torch.no_grad():
        logits, tags = model(**rows).logits, tagger(**rows).logits
        for row, (ids, part) in enumerate(zip(rows["input_ids"], real, strict=True)):
            mean = alone(model, ids[part]).mean(dim=0)
            assert (logits[row] - model.classifier(torch.tanh(model.dense(mean)))).abs().max() < 1e-12
            assert (tags[row, part] - tagger.classifier(alone(tagger, ids[part]))).abs().max() < 1e-12


def test_losses_of_the_stock_models_are_those_of_transformers() -> None:
    model, tagger = stock("bilstm"), stock("bilstm", tags=True)
    rows = batch(model)
    labels = torch.tensor([0, 1, 2, 1, 0])
    found = model(**rows, labels=labels)
    assert found.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(found.logits, labels).item())
    of_words = torch.where(rows["attention_mask"].bool(), rows["input_ids"] % 3, -100)
    found = tagger(**rows, labels=of_words)
    by_hand = torch.nn.functional.cross_entropy(found.logits.flatten(0, 1), of_words.flatten())
    assert found.loss.item() == pytest.approx(by_hand.item())


def test_a_width_without_a_half_is_no_config() -> None:
    with pytest.raises(ValueError, match="hidden_size is 33, and each direction of a BiLSTM has half of it"):
        BiLSTMConfig(hidden_size=33)


@pytest.mark.parametrize("tags", [False, True])
def test_a_folder_loads_where_exitkit_is_known_and_saves_every_weight(tags: bool, tmp_path: Path) -> None:
    model = stock("bilstm with narrow embeddings", tags=tags, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    auto = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
    again = auto.from_pretrained(tmp_path).eval()
    assert AutoConfig.from_pretrained(tmp_path).model_type == "exitkit-bilstm"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_plain_transformers_loads_a_folder_with_the_code_that_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `trust_remote_code=True` in a process that does not know exitkit; that code must do without it too."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "cache")
    folder = tmp_path / "model"
    model = stock("bilstm", dtype=torch.float32)
    model.save_pretrained(folder)
    named = json.loads((folder / "config.json").read_text())["auto_map"]
    assert named["AutoConfig"] == "modeling_bilstm.BiLSTMConfig"
    found = dynamic_module_utils.get_class_from_dynamic_module(named["AutoModelForSequenceClassification"], folder)
    assert found is not type(model)
    with torch.no_grad():
        both = (model, found.from_pretrained(folder).eval())
        expected, given = (one(torch.arange(5, 12)[None]).logits for one in both)
    assert torch.allclose(given, expected, atol=1e-6)
    roots = {
        name.split(".")[0]
        for node in ast.walk(ast.parse((folder / "modeling_bilstm.py").read_text()))
        for name in ([node.module or "."] if isinstance(node, ast.ImportFrom) else [])
        + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }
    assert roots == {"__future__", "typing", "torch", "transformers"}
