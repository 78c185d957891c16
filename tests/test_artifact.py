"""The folder: a plain checkpoint, no pickles, and damage is named."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from helpers import unsealed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, trainer_utils

import exitkit
from exitkit.artifacts.artifact import read as read_artifact
from exitkit.engine import layout
from exitkit.errors import ExitkitError, UsageError
from exitkit.plugins import installed
from exitkit.training import trainer

SAVED = Path(__file__).parent / "saved_by_0_1_0"
SETTINGS = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 256, "training": {"save_steps": 2}}


def test_checkpoints_written_within_a_second_are_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (9, 10):
        (tmp_path / f"checkpoint-{number}").mkdir()
    notices = logging.getLogger("transformers.trainer_utils")
    trainer_utils.logger.warning_once.cache_clear()
    notices.addHandler(caplog.handler)
    try:
        with trainer._no_word_of_file_times():
            found = trainer_utils.sort_checkpoints(str(tmp_path), use_mtime=True)
            notices.warning("something else")
    finally:
        notices.removeHandler(caplog.handler)
    assert [Path(one).name for one in found] == ["checkpoint-9", "checkpoint-10"]
    assert {record.getMessage() for record in caplog.records} == {"something else"}


def test_the_folder_loads_in_plain_transformers_and_answers_like_the_last_exit(trained: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    texts = ["the plot was good", "a bad film , and the plot matters"]
    with torch.inference_mode():
        theirs = plain(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1).numpy()
    assert exitkit.load(trained).predict_proba(texts) == pytest.approx(theirs, abs=1e-5)
    assert plain.config.id2label == {0: "negative", 1: "positive"}


def test_loaded_weights_lie_as_few_rows_read_them_fast_and_are_those_of_the_file(trained: Path) -> None:
    model = read_artifact(trained, installed()).model
    saved = load_file(trained / "model.safetensors")
    linear = {name: part.weight for name, part in model.stock.named_modules() if isinstance(part, torch.nn.Linear)}
    assert len(linear) > 10
    for name, weight in linear.items():
        assert weight.stride() == (1, len(weight) + layout.LINE), name
        assert torch.equal(weight, saved[f"{name}.weight"]), name
    assert all(head.dense.weight.stride() == (1, len(head.dense.weight) + layout.LINE) for head in model.exit_heads)
    layout.by_output(model)
    for name, weight in linear.items():
        assert weight.is_contiguous(), name
        assert torch.equal(weight, saved[f"{name}.weight"]), name


def test_a_loaded_model_trains_like_one_whose_weights_lie_as_in_the_file(trained: Path) -> None:
    """Fused optimizers walk through memory and would take the gaps between weights for weights."""
    rows = {
        "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1] * 3 + [0]]),
    }
    after = []
    for lay in (lambda model: None, layout.by_output):
        model = read_artifact(trained, installed()).model.requires_grad_(True)
        lay(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for _ in range(3):
            torch.manual_seed(0)
            model.train()(**rows).logits.sum().backward()
            optimizer.step()
        after.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*after, strict=True))


def test_nothing_in_the_folder_is_a_pickle_and_no_head_is_saved_twice(trained: Path) -> None:
    names = {file.name for file in trained.iterdir()}
    assert {"config.json", "model.safetensors", "exits.safetensors", "exitkit.yaml", "metrics.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert all(name.startswith("heads.") for name in load_file(trained / "exits.safetensors"))
    assert len({name.split(".")[1] for name in load_file(trained / "exits.safetensors")}) == 3


FILES = ["config.json", "model.safetensors", "exits.safetensors", "exitkit.yaml", "tokenizer.json"]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_an_error_that_names_the_folder(file: str, artifact: Path) -> None:
    (artifact / file).unlink()
    with pytest.raises(ExitkitError, match=str(artifact)):
        exitkit.load(artifact)


@pytest.mark.parametrize("file", [*FILES, "policy.yaml"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_an_error_and_not_a_crash(file: str, share: float, artifact: Path) -> None:
    unsealed(artifact)
    shutil.copyfile(SAVED / "large" / "policy.yaml", artifact / "policy.yaml")
    whole = (artifact / file).read_bytes()
    (artifact / file).write_bytes(whole[: int(share * len(whole))])
    try:
        exitkit.load(artifact)
    except ExitkitError as error:
        assert str(artifact) in str(error)  # noqa: PT017  # some cuts of a text file still are whole


def test_weights_that_are_not_numbers_are_refused(artifact: Path) -> None:
    weights = load_file(unsealed(artifact) / "exits.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, artifact / "exits.safetensors")
    with pytest.raises(ExitkitError, match="NaN"):
        exitkit.load(artifact)


def test_nan_in_the_encoder_is_an_error_and_never_an_answer(artifact: Path) -> None:
    weights = load_file(unsealed(artifact) / "model.safetensors")
    weights["classifier.weight"].fill_(float("nan"))
    save_file(weights, artifact / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExitkitError, match="NaN"):
        exitkit.load(artifact).predict(["a film"])


def test_a_model_with_pickled_weights_only_is_refused_with_the_way_to_convert_it(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(encoder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="save_pretrained"):
        exitkit.train(model=str(folder), output=tmp_path / "out", **SETTINGS)


def test_training_is_repeatable_from_a_seed(encoder: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("one", "two"):
        exitkit.train(model=str(encoder), output=tmp_path / name, **SETTINGS)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class Interrupted(Exception):
    """Somebody pulled the plug."""


def test_an_interrupted_run_leaves_no_model_and_resumes_to_the_same_weights(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    exitkit.train(model=str(encoder), output=whole, **SETTINGS)

    class PullsThePlug(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise Interrupted

    right = trainer.ShowProgress
    monkeypatch.setattr(trainer, "ShowProgress", lambda advance: PullsThePlug())
    with pytest.raises(Interrupted):
        exitkit.train(model=str(encoder), output=broken, **SETTINGS)
    assert not broken.exists()
    assert (tmp_path / "broken.partial").is_dir()
    with pytest.raises(UsageError, match="training was not finished"):
        exitkit.load(tmp_path / "broken.partial")
    monkeypatch.setattr(trainer, "ShowProgress", right)
    with pytest.raises(UsageError, match="--resume"):
        exitkit.train(model=str(encoder), output=broken, **SETTINGS)
    exitkit.train(model=str(encoder), output=broken, resume=True, **SETTINGS)
    assert not (tmp_path / "broken.partial").exists()
    for file in ("model.safetensors", "exits.safetensors"):
        one, two = load_file(whole / file), load_file(broken / file)
        assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one), file
    assert json.loads((broken / "metrics.json").read_text())["exits"]
