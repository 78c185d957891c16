"""Phases: frozen is frozen, fine-tuned models keep their answers, runs go on where they stopped, adversaries move."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import train_interrupted, weights_of
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

import exitkit
from exitkit.data.batches import encode
from exitkit.data.sources import read
from exitkit.engine.loop import full_pass
from exitkit.engine.stream import pack
from exitkit.errors import ExitkitError, UsageError
from exitkit.plugins import installed
from exitkit.testing import tiny_batch, tiny_model
from exitkit.training import partial
from exitkit.training.adversarial import FastGradient, perturbation
from exitkit.training.recipes.joint import Joint
from exitkit.training.start import starting_model
from exitkit.training.trainer import arguments, run_phase

TWO_STAGE = {"name": "two-stage", "learning_rate": 2e-3, "head_learning_rate": 2e-3}
QUICK = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 256, "recipe": TWO_STAGE}


@pytest.fixture(scope="module")
def classifier(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's fine-tuned classifier: a plain checkpoint without any exit."""
    folder = tmp_path_factory.mktemp("classifier")
    AutoModelForSequenceClassification.from_pretrained(trained).save_pretrained(folder)
    AutoTokenizer.from_pretrained(trained).save_pretrained(folder)
    return folder


def renamed(classifier: Path, folder: Path, names: list[str]) -> Path:
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(folder)
    return folder


def test_a_fine_tuned_classifier_gets_exits_and_keeps_every_weight(
    classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "exitkit"):
        exitkit.train(model=str(classifier), output=tmp_path / "model", **QUICK)
    assert "phase 'fine-tune' is left out" in caplog.text
    before, after = load_file(classifier / "model.safetensors"), load_file(tmp_path / "model/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_encoder_is_fine_tuned_first_and_its_exits_change_nothing_of_it(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    kept: dict[str, dict[str, torch.Tensor]] = {}
    right = partial.finish_phase

    def watched(model, state, spent):
        kept[state.name] = {name: value.clone() for name, value in model.state_dict().items()}
        right(model, state, spent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exitkit.training.phases.finish_phase", watched)
        report = exitkit.train(model=str(encoder), output=folder, training={"weight_decay": 0.3}, **QUICK)
    assert list(kept) == ["fine-tune", "exits"]
    changed = {n for n in kept["exits"] if not torch.equal(kept["exits"][n], kept["fine-tune"][n])}
    assert changed
    assert all(name.startswith("heads.") for name in changed)
    assert report["recipe"] == "two-stage"


def test_classes_in_another_order_are_the_models_order(classifier: Path, tmp_path: Path) -> None:
    other = renamed(classifier, tmp_path / "other", ["positive", "negative"])
    exitkit.train(model=str(other), output=tmp_path / "model", **QUICK)
    assert exitkit.load(tmp_path / "model").labels == ("positive", "negative")


def test_classes_with_other_names_are_refused_until_their_order_is_given(classifier: Path, tmp_path: Path) -> None:
    other = renamed(classifier, tmp_path / "other", ["LABEL_0", "LABEL_1"])
    given = {"model": str(other), "output": tmp_path / "model", **QUICK}
    with pytest.raises(UsageError, match=r"LABEL_0, LABEL_1; the data has negative, positive.*--label-names"):
        exitkit.train(**given)
    assert not (tmp_path / "model.partial").exists(), "a refused run leaves nothing behind"
    with pytest.raises(UsageError, match="must be the labels of the data"):
        exitkit.train(label_names=["no", "yes"], **given)
    exitkit.train(label_names="negative,positive", **given)
    texts = read("demo:reviews", "test[:20]").data["text"][:]
    expected = [answer["label"] for answer in _answers(classifier, texts)]
    assert [answer["label"] for answer in exitkit.load(tmp_path / "model").predict(texts)] == expected


def _answers(folder: Path, texts: list[str]) -> list[dict[str, str]]:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        best = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(dim=-1)
    return [{"label": model.config.id2label[number]} for number in best.tolist()]


def test_epochs_of_a_phase_are_set_by_its_name(encoder: Path, tmp_path: Path) -> None:
    recipe = {**TWO_STAGE, "exits": {"epochs": 2}}
    steps: list[str] = []
    right = run_phase

    def watched(model, recipe, phase, args, *rest):
        steps.append(f"{phase.name}: {args.num_train_epochs:g}")
        return right(model, recipe, phase, args, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exitkit.training.phases.run_phase", watched)
        exitkit.train(model=str(encoder), output=tmp_path / "model", **{**QUICK, "recipe": recipe})
    assert steps == ["fine-tune: 1", "exits: 2"]
    with pytest.raises(UsageError, match="unknown option or phase of recipe 'two-stage' 'exit'"):
        exitkit.train(
            model=str(encoder), output=tmp_path / "other", **{**QUICK, "recipe": {**TWO_STAGE, "exit": {"epochs": 2}}}
        )


# --- going on after an interruption


@pytest.fixture(scope="module")
def whole(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole") / "model"
    exitkit.train(model=str(encoder), output=folder, training={"save_steps": 2}, **QUICK)
    return weights_of(folder)


class Killed(BaseException):
    """Nothing catches this."""


PLACES = [
    "exitkit.training.trainer.RecipeTrainer._save",  # while a checkpoint is written
    "transformers.trainer.Trainer._save_rng_state",
    "exitkit.training.partial.save_file",  # while a finished phase is written
    "exitkit.training.partial.os.replace",
    "exitkit.training.train.score_exits",
    "exitkit.artifacts.artifact.write",
    "exitkit.artifacts.artifact.publish",
]


@pytest.mark.parametrize("time_", [1, 2])
@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_anywhere_resumes_to_the_same_bits(
    place: str, time_: int, whole: dict[str, torch.Tensor], encoder: Path, tmp_path: Path
) -> None:
    given = {"model": str(encoder), "output": tmp_path / "model", "training": {"save_steps": 2}, **QUICK}
    calls = 0
    module, _, name = place.rpartition(".")

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == time_:
            raise Killed
        return right(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        import importlib

        try:
            owner = importlib.import_module(module)
        except ModuleNotFoundError:
            parent, _, attribute = module.rpartition(".")
            owner = getattr(importlib.import_module(parent), attribute)
        right = getattr(owner, name)
        patch.setattr(owner, name, dies)
        try:
            exitkit.train(**given)
        except Killed:
            assert not (tmp_path / "model").exists()
        else:
            assert calls < time_, "the run was to be killed"
            return
    exitkit.train(resume=True, **given)
    assert not (tmp_path / "model.partial").exists()
    found = weights_of(tmp_path / "model")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_a_process_killed_outright_resumes_to_the_same_bits(
    whole: dict[str, torch.Tensor], encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": str(encoder), "output": tmp_path / "model", **QUICK}
    code = (
        f"import exitkit; exitkit.train(**{ {key: str(v) if isinstance(v, Path) else v for key, v in given.items()}!r})"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # as many as here: the same sums
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    folder = tmp_path / "model.partial/training"
    for _ in range(1200):
        if list(folder.glob("*/checkpoint-*/*")) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    warned: list[str] = []
    monkeypatch.setattr("transformers.trainer_utils.logger.warning_once", warned.append)
    exitkit.train(resume=True, **given)
    assert not any("do not match" in message for message in warned)
    found = weights_of(tmp_path / "model")
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_a_finished_phase_is_not_run_again(encoder: Path, tmp_path: Path) -> None:
    given = {"model": str(encoder), "output": tmp_path / "model", **QUICK}
    ran: list[str] = []
    right = run_phase

    def watched(model, recipe, phase, *rest):
        ran.append(phase.name)
        if ran == ["fine-tune", "exits"]:
            raise Killed
        return right(model, recipe, phase, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exitkit.training.phases.run_phase", watched)
        with pytest.raises(Killed):
            exitkit.train(**given)
        report = exitkit.train(resume=True, **given)
    assert ran == ["fine-tune", "exits", "exits"]
    assert report["samples_per_second"] > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exits": [2]}, "--exits was not given, and now is"),
        ({"seed": 7}, "--seed was 42, and now is 7"),
        ({"max_train_samples": 200}, "the training rows have changed"),
    ],
)
def test_only_the_same_command_goes_on(change: dict, words: str, encoder: Path, tmp_path: Path) -> None:
    given = {"model": str(encoder), "output": tmp_path / "model", **QUICK}
    train_interrupted(**given)
    with pytest.raises(UsageError, match=words):
        exitkit.train(resume=True, **{**given, **change})
    run = json.loads((tmp_path / "model.partial/training/run.json").read_text())
    assert run["seed"] == 42


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("kept", ["optimizer.pt", "scheduler.pt", "model.safetensors"])
def test_a_full_disk_is_one_message_whatever_does_not_fit(kept: str, encoder: Path, tmp_path: Path) -> None:
    right, folder = torch.save, tmp_path / "model.partial/training"

    def save(value, path, *rest, **more):
        right(value, "/dev/full" if str(path).endswith(kept) else path, *rest, **more)

    def save_file(values, path, **more):
        raise SafetensorError("I/O error: No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.save", save)
        if kept == "model.safetensors":
            patch.setattr("exitkit.training.trainer.save_file", save_file)
        with pytest.raises(ExitkitError, match=f"{folder}.*: cannot write there: .*go on with --resume"):
            exitkit.train(model=str(encoder), output=tmp_path / "model", **QUICK)
    exitkit.train(model=str(encoder), output=tmp_path / "model", resume=True, **QUICK)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_model_that_is_changed_meanwhile_is_not_gone_on_with(file: str, encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    given = {"model": str(folder), "output": tmp_path / "model", **QUICK}
    train_interrupted(**given)
    if file == "tokenizer.json":
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace('"lowercase": true', '"lowercase": false').replace('"film"', '"xfilm"'))
        assert (folder / file).read_text() != text
    else:
        weights = load_file(folder / file)
        weights[next(iter(weights))].add_(1)
        save_file(weights, folder / file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match="the weights or tokenizer of --model have changed"):
        exitkit.train(resume=True, **given)


# --- adversarial training


def test_every_sequence_is_moved_by_epsilon_along_its_own_gradient() -> None:
    _, stream = pack({"input_ids": torch.ones(3, 2).long(), "attention_mask": torch.tensor([[1, 1], [1, 0], [1, 1]])})
    stream = stream.carrying(torch.zeros(5, 2))
    gradient = torch.tensor([[3.0, 4.0], [3.0, 0.0], [0.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    moved = perturbation(gradient, stream, 0.5)
    by_hand = torch.tensor([[0.3, 0.4], [0.3, 0.0], [0.0, 0.4], [0.0, 0.0], [0.0, 0.0]])
    assert torch.allclose(moved, by_hand)
    assert (perturbation(gradient * torch.inf, stream, 0.5) == 0).all()
    assert perturbation(gradient.bfloat16(), stream, 0.5).dtype == torch.float32


def test_the_second_pass_raises_the_loss_and_both_passes_count() -> None:
    model, batch = tiny_model(), tiny_batch(6)
    labels = torch.randint(3, (6,), generator=torch.Generator().manual_seed(0))
    adversary = FastGradient(0.5)

    def loss(embedded=None):
        logits = full_pass(model, batch, embedded).logits[-1]
        return torch.nn.functional.cross_entropy(logits, labels)

    first = loss(adversary.watch)
    first.backward()
    one = model.stock.classifier.weight.grad.clone()
    second = loss(adversary.perturb)
    second.backward()
    assert second.item() > first.item()
    both = model.stock.classifier.weight.grad
    model.zero_grad()
    moved = adversary  # a fresh first pass, then only the second one's gradient
    loss(moved.watch).backward()
    model.stock.zero_grad()
    loss(moved.perturb).backward()
    assert torch.allclose(both, one + model.stock.classifier.weight.grad, atol=1e-6)


def _train_steps(encoder: Path, folder: Path, per_step: int, accumulate: int, bf16: bool = False) -> dict:
    rows = read("demo:reviews", "train[:32]")
    set_seed(0)
    start = starting_model(str(encoder), rows.task, None, "mean", installed())
    for module in start.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in start.model.encoder.blocks:
        layer.attention.self.dropout.p = 0.0
    recipe = Joint()
    (phase,) = recipe.phases(start.model, 1)
    extra = {
        "per_device_train_batch_size": per_step,
        "gradient_accumulation_steps": accumulate,
        "save_strategy": "no",
        "max_grad_norm": 1e9,
    }
    args = arguments(folder, phase, seed=0, bf16=bf16, device=torch.device("cpu"), extra=extra)
    run_phase(
        start.model,
        recipe,
        phase,
        args,
        encode(rows, start.tokenizer, 64),
        start.tokenizer,
        lambda *a, **k: None,
        None,
        rows.task,
        None,
        FastGradient(1.0),
    )
    return {name: value.clone() for name, value in start.model.state_dict().items()}


def test_adversaries_of_accumulated_parts_equal_those_of_the_whole_batch(encoder: Path, tmp_path: Path) -> None:
    whole, parts = (_train_steps(encoder, tmp_path / str(n), 8 // n, n) for n in (1, 2))
    assert all(torch.allclose(whole[name], parts[name], atol=3e-4) for name in whole)


def test_adversaries_work_in_bf16(encoder: Path, tmp_path: Path) -> None:
    exact, rough = (_train_steps(encoder, tmp_path / str(bf16), 16, 1, bf16) for bf16 in (False, True))
    assert all(torch.isfinite(value).all() for value in rough.values())
    assert all((exact[name] - rough[name]).abs().max() < 2e-2 for name in exact)


def test_every_recipe_takes_an_adversary(encoder: Path, tmp_path: Path) -> None:
    for recipe in ("joint", "two-stage"):
        folder = tmp_path / recipe
        given = {**QUICK, "recipe": recipe, "max_train_samples": 64}
        exitkit.train(model=str(encoder), output=folder, adversarial="fgm", **given)
        assert (folder / "exits.safetensors").exists()
