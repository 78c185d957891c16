"""What training starts from: checkpoints of every family, with and without what they should bring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from artifacts import byte_level
from families import FAMILIES, stock
from transformers import AutoConfig, AutoModelForTokenClassification

from exitkit.errors import UsageError
from exitkit.plugins import installed
from exitkit.tasks import Tagging
from exitkit.training.start import content_of, open_checkpoint, starting_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_a_tokenizer_gets_the_spare_one_or_says_so(family: str, tmp_path: Path) -> None:
    stock(family).save_pretrained(tmp_path)
    spare = byte_level()
    assert open_checkpoint(str(tmp_path), "--student", spare)[1] is spare
    with pytest.raises(UsageError, match=r"--model .*: it has no tokenizer \(tokenizer.json"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("family", ["bert", "modernbert", "bilstm"])
def test_a_tokenizer_that_cannot_be_read_is_not_replaced(family: str, tmp_path: Path) -> None:
    stock(family).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=r"--student .*: its tokenizer cannot be read: "):
        open_checkpoint(str(tmp_path), "--student", byte_level())


def test_a_spare_tokenizer_of_words_is_taken_as_it_is(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "roberta", vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    spare = byte_level()
    begun = starting_model(str(tmp_path), Tagging(("O", "NAME")), None, "cls", installed(), spare=spare)
    assert begun.tokenizer is spare


def test_content_tells_weights_and_tokenizers_apart(tmp_path: Path) -> None:
    model, tokenizer = stock("bert", dtype=torch.float32), byte_level()
    before = content_of(model, tokenizer)
    assert content_of(stock("bert", dtype=torch.float32), byte_level()) == before
    tokenizer.add_tokens(["new"])
    assert content_of(model, tokenizer) != before
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert content_of(model, byte_level()) != before
