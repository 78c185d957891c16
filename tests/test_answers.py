"""What `exitkit.load(DIR)` takes and refuses, and that nothing around it changes an answer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset as HubDataset
from helpers import cli, unsealed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import exitkit
from exitkit.cli import app
from exitkit.data.batches import encode
from exitkit.data.sources import read
from exitkit.engine.stream import pack
from exitkit.errors import ExitkitError, UsageError
from exitkit.prediction.predictor import Predictor
from exitkit.prediction.words import batch_of

TEXTS = ["a fine film", "awful plot", "good"]


@pytest.fixture(scope="module")
def model(trained: Path) -> Predictor:
    return exitkit.load(trained)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pd.DataFrame({"text": TEXTS}), r'not a DataFrame.*table\["text"\]'),
        (pd.DataFrame({"a": TEXTS, "b": TEXTS}), r'table\["a"\].*a, b'),
        ({"text": TEXTS}, r'not a dict.*table\["text"\]'),
        (HubDataset.from_dict({"text": TEXTS}), r'not a Dataset.*table\["text"\]'),
        (None, "a list of texts, not NoneType"),
        (5, "a list of texts, not int"),
        (np.float32(2), "a list of texts, not float32"),
        (np.array("abc"), "a list of texts, not ndarray"),
        (Path("file.txt"), "a list of texts, not PosixPath"),
        ([np.float32(2)], "text 0 is float32"),
        (["good", "\ud800"], r"text 1 holds half a surrogate pair, \\ud800"),
        ([["good", "\ud83d"]], "text 0 holds half a surrogate pair"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_with_what_to_give(given: Any, words: str, model: Predictor) -> None:
    for method in (model.predict, model.predict_proba):
        with pytest.raises(UsageError, match=words):
            method(given)


@pytest.mark.parametrize(
    "make", [tuple, iter, pd.Series, np.array, lambda texts: HubDataset.from_dict({"t": texts})["t"]]
)
def test_anything_that_gives_texts_one_by_one_is_answered(make: Any, model: Predictor) -> None:
    assert model.predict(make(TEXTS)) == model.predict(TEXTS)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "8", None])
def test_a_batch_size_is_a_whole_number_from_one_on(size: Any, model: Predictor) -> None:
    with pytest.raises(UsageError, match="batch_size is"):
        model.predict(TEXTS, batch_size=size)
    with pytest.raises(UsageError, match="batch_size is"):
        model.predict_proba(TEXTS, batch_size=size)


def damaged(folder: Path) -> tuple[Path, str]:
    """A model whose vector of the word 'plot' is NaN, and a text that has it."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    tokenizer = exitkit.load(folder).artifact.tokenizer
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    weights[name][tokenizer("plot", add_special_tokens=False)["input_ids"][0]] = torch.nan
    save_file(weights, unsealed(folder) / "model.safetensors", metadata={"format": "pt"})
    return folder, "the plot"


def test_one_damaged_row_is_named_and_the_others_are_answered(artifact: Path, trained: Path, tmp_path: Path) -> None:
    right = exitkit.load(trained).predict(["good", "fine film", "bad"])
    folder, text = damaged(artifact)
    rows = ["good", "fine film", text, "bad"]
    with pytest.raises(ExitkitError, match="NaN or infinite values for text 2"):
        exitkit.load(folder).predict(rows)
    with pytest.raises(ExitkitError, match="for text 2"):
        exitkit.load(folder).predict_proba(rows, batch_size=2)
    lines, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    lines.write_text("\n".join(rows))
    found = cli("predict", folder, "--input", lines, "--output", out, "--on-error", "skip")
    assert (found["rows"], found["skipped"]) == (3, 1)
    assert found["skipped_lines"][0]["line"] == 3
    assert sum(found["exit_histogram"]) == 3
    answered = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["label"] for one in answered] == [one["label"] for one in right]
    stopped = CliRunner().invoke(
        app, ["predict", str(folder), "--input", str(lines), "--output", str(tmp_path / "b.jsonl")]
    )
    assert stopped.exit_code == 1
    assert "line 3: the model answers NaN" in " ".join(stopped.stderr.split())
    assert len((tmp_path / "b.jsonl.partial").read_text().splitlines()) == 2


def bare() -> PreTrainedTokenizerFast:
    """A tokenizer that adds nothing to a text, and drops letters that it does not know."""
    built = Tokenizer(models.BPE(vocab={"[PAD]": 0, "a": 1, "b": 2, "c": 3}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=built, pad_token="[PAD]")


def test_a_text_without_a_token_is_read_as_one_token_and_never_as_its_neighbour(trained: Path) -> None:
    model = exitkit.load(trained)
    object.__setattr__(model.artifact, "tokenizer", bare())
    alone = {text: model.predict_proba([text])[0] for text in ("", "zzz", "a b", "c")}
    for texts in (["", "a b"], ["c", "", "zzz", "a b"]):
        for text, found in zip(texts, model.predict_proba(texts), strict=True):
            assert np.allclose(found, alone[text], atol=1e-6)
    assert np.allclose(alone[""], alone["zzz"])
    rows = encode(read([("", "x"), ("a b", "y")]), bare(), 8)
    assert [len(ids) for ids in rows["input_ids"][:]] == [1, 2]
    assert rows["attention_mask"][:] == [[1], [1, 1]]


def test_a_sentence_whose_words_have_no_token_has_a_token_and_no_word() -> None:
    batch, found = batch_of([["zzz"], ["a", "b"]], bare(), 8)
    assert batch["attention_mask"].sum(dim=1).tolist() == [1, 2]
    assert batch["words"].tolist() == [[-1, -1], [0, 1]]
    assert [one.seen for one in found] == [[], [0, 1]]


def test_a_row_without_a_token_is_never_packed() -> None:
    with pytest.raises(ValueError, match="row 1 of the batch has no token"):
        pack({"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])})


def test_training_mode_and_autocast_change_no_answer(trained: Path) -> None:
    model = exitkit.load(trained)
    right = model.predict(TEXTS)
    model.artifact.model.stock.train()  # type: ignore[attr-defined]
    assert model.predict(TEXTS) == right
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.predict(TEXTS) == right


def test_a_default_dtype_changes_no_answer(trained: Path, tagger: Path) -> None:
    policies = [{"name": name} for name in ("entropy", "patience", "vote", "confidence")]
    right = [exitkit.load(trained).predict(TEXTS, policy=policy) for policy in policies]
    tags = exitkit.load(tagger).predict(TEXTS)
    try:
        torch.set_default_dtype(torch.float64)
        model = exitkit.load(trained)
        assert [model.predict(TEXTS, policy=policy) for policy in policies] == right
        assert exitkit.load(tagger).predict(TEXTS) == tags
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_loaded_model_warns_once_and_of_fixed_never(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = exitkit.load(trained)
    with caplog.at_level(logging.WARNING, "exitkit"):
        for _ in range(3):
            model.predict(TEXTS)
            model.predict(TEXTS, policy="entropy")
            model.predict(TEXTS, policy={"name": "fixed", "exit": 2})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert not any("fixed" in one for one in said)


def test_another_precision_than_a_setting_was_calibrated_in_is_said_once(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    point = {"settings": {"threshold": 0.3}, "speedup": {"layers": 1.5}, "score": 0.9}
    rows = {"source": "x", "split": "train", "revision": None, "columns": {}, "indices": None, "rows": 1, "hash": "0"}
    entry = {"chosen": {**point, "target_speedup": 1.5, "exit_histogram": [1, 0, 0, 0]}, "frontier": [point]}
    entry |= {"currency": "layers", "batch_size": 32, "threads": 1, "calibration": rows, "precision": "fp32"}
    (artifact / "policy.yaml").write_text(yaml.safe_dump({"default": "entropy", "policies": {"entropy": entry}}))
    for precision, times in (("fp32", 0), ("bf16", 1)):
        caplog.clear()
        model = exitkit.load(artifact, precision=precision)
        with caplog.at_level(logging.WARNING, "exitkit"):
            model.predict(TEXTS)
            model.predict(TEXTS)
        said = [record.getMessage() for record in caplog.records if "calibrated in fp32" in record.getMessage()]
        assert len(said) == times
