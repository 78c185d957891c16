"""A tiny trained artifact on built-in data, made once per worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

import exitkit
from exitkit.data import demo


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    demo.build_model(folder, layers=4, width=32, heads=2)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """Four exits over `demo:reviews`, good enough that exits differ."""
    return _trained(tmp_path_factory.mktemp("trained"), encoder, "demo:reviews", 2000)


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """Four exits over `demo:tags`."""
    return _trained(tmp_path_factory.mktemp("tagger"), encoder, "demo:tags", 2500)


def _trained(parent: Path, encoder: Path, data: str, rows: int) -> Path:
    rates = {"learning_rate": 2e-3, "head_learning_rate": 2e-3}
    exitkit.train(
        model=str(encoder),
        data=data,
        output=parent / "model",
        epochs=1,
        max_train_samples=rows,
        recipe={"name": "joint", **rates},
    )
    return parent / "model"


@pytest.fixture
def artifact(trained: Path, tmp_path: Path) -> Path:
    """A copy of its own, to change."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    return folder


def byte_level() -> PreTrainedTokenizerFast:
    """As ModernBERT's: a word is read with the blank before it, and offsets are left as they are."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>", "<pad>"]
    built = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=built, pad_token="<pad>", cls_token="<s>", sep_token="</s>")


def byte_level_checkpoint(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny RoBERTa with a byte-level tokenizer."""
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=tokenizer.pad_token_id,
    )
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
