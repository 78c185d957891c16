"""`exitkit train`: put exits into an encoder and train both."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import get_last_checkpoint

import exitkit
from exitkit import artifact, config, runtime
from exitkit.config import Choice, TrainConfig
from exitkit.data.batches import batches, encode, limit
from exitkit.data.columns import Columns
from exitkit.data.sources import Rows
from exitkit.data.splits import TrainingData, label_array, training_and_calibration
from exitkit.errors import ExitkitError, UsageError, one_of
from exitkit.heads import choose_pooling
from exitkit.model import ExitModel
from exitkit.plugins import Registry, installed
from exitkit.progress import bar, quiet
from exitkit.recipe import Recipe
from exitkit.replay import record
from exitkit.tasks import Regression, balanced, needs_labels
from exitkit.training.start import starting_model
from exitkit.training.trainer import arguments, run_phase

log = logging.getLogger("exitkit")

TRAINING = "training"  # folder inside DIR.partial for the trainer's own state
DONE = "phase-done.json"


def train(settings: TrainConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Train a model with exits and save it.

    Args:
        settings: the configuration, or give its fields by name: `train(model=..., data=..., output=...)`. `data` may
            be anything that `exitkit.data.sources.Source` names, in-memory data included.

    Returns:
        What is written to metrics.json.

    Raises:
        UsageError: a setting is missing or not allowed.
        ExitkitError: data or model cannot be read, or training fails.
    """
    settings = settings or config.parse(TrainConfig, fields)
    config.require(settings, "model", "output")
    if settings.data is None:
        raise UsageError("missing --data. Give it on the command line, or in the file of --config.")
    assert settings.output is not None
    partial = _claim(settings.output, settings.resume, settings.overwrite)
    registry = installed()
    recipe_name, recipe = build_recipe(settings.recipe, registry)
    columns = Columns(settings.text_column, settings.pair_column, settings.label_column)
    data = training_and_calibration(settings.data, columns, settings.seed, settings.max_train_samples, settings.task)
    metric = settings.metric or data.task.default_metric
    data.task.metric(metric)  # refuse a misspelt label before training, not after
    weights = class_weights(settings.class_weights, data.train)
    scale = float(np.std(label_array(data.train))) if isinstance(data.task, Regression) else 1.0
    device = runtime.device(settings)
    set_seed(settings.seed)
    with _model_folder(str(settings.model), settings.seed) as source:
        model, tokenizer = starting_model(
            source, data.task, settings.exits, choose_pooling(settings.pooling), registry, scale
        )
    max_length = limit(tokenizer, model.stock.config, settings.max_length)
    model.to(device)
    phases = recipe.phases(model, settings.epochs)
    started = time.perf_counter()
    samples = _train_phases(
        model, tokenizer, recipe, phases, data.train, max_length, settings, device, partial / TRAINING, weights
    )
    seconds = time.perf_counter() - started
    report = {
        "task": model.task,
        "recipe": recipe_name,
        "metric": metric,
        "split": data.evaluation.origin.split + (" (set aside)" if data.evaluation.origin.indices else ""),
        "rows": len(data.evaluation),
        "pooling": model.pooling,
        "exits": score_exits(model, tokenizer, data.evaluation, max_length, metric, device),
        "train_seconds": round(seconds, 3),
        "samples_per_second": round(samples / seconds, 3),
    }
    card = _card(settings, model, data, {"name": recipe_name, **dataclasses.asdict(recipe)}, max_length, metric)  # type: ignore[call-overload]
    artifact.write(partial, model, tokenizer, card)
    artifact.write_metrics(partial, report)
    shutil.rmtree(partial / TRAINING)
    artifact.publish(partial, settings.output)
    return report


def build_recipe(choice: Choice, registry: Registry) -> tuple[str, Recipe]:
    """The recipe of a configuration, with its options. Raises UsageError for an unknown name or option."""
    if len(choice.name) != 1:
        raise UsageError(f"--recipe: exactly one recipe is needed, not {len(choice.name)}.")
    name = choice.name[0]
    recipe = registry.recipe(name)
    known = {field.name: field for field in dataclasses.fields(recipe)}  # type: ignore[arg-type]
    options = {}
    for option, value in choice.options.items():
        if option not in known:
            raise UsageError(one_of(f"option of recipe '{name}'", option, known))
        options[option] = _typed(f"recipe.{option}", value, known[option].default)
    return name, recipe(**options)


def score_exits(
    model: ExitModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    max_length: int,
    metric: str,
    device: torch.device,
) -> list[dict[str, float]]:
    """Score of every exit on some rows."""
    encoded = encode(rows, tokenizer, max_length)
    model.eval()
    with bar("scoring exits", len(rows)) as advance:

        def padded() -> Iterator[dict[str, torch.Tensor]]:
            for batch in batches(encoded, tokenizer, 64):
                batch.pop("labels")
                yield {name: tensor.to(device) for name, tensor in batch.items()}
                advance(64)

        recording = record(model, padded())
    task = rows.task
    assert task is not None
    truth, answers = label_array(rows), task.answers(recording.logits)
    reference = truth if needs_labels(metric) else answers[-1]
    score, usual = task.metric(metric), task.metric(task.default_metric)
    return [
        {
            "exit": number,
            "layer": layer,
            "score": score(reference, given),
            task.default_metric: usual(truth, given),
        }
        for number, (layer, given) in enumerate(zip(model.exits, answers, strict=True), start=1)
    ]


def class_weights(asked: str | Mapping[str, float] | None, rows: Rows) -> torch.Tensor | None:
    """Weights [C] of the classes for the loss, or None.

    Raises UsageError: regression, or a label that the data does not have.
    """
    if asked is None:
        return None
    assert rows.task is not None
    weights = balanced(label_array(rows), rows.task)
    if isinstance(asked, Mapping):
        for label in asked:
            if label not in rows.labels:
                raise UsageError("--class-weights: " + one_of("label", label, rows.labels))
        return torch.tensor([float(asked.get(label, 1.0)) for label in rows.labels])
    return weights


def _train_phases(
    model: ExitModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    phases: Any,
    rows: Rows,
    max_length: int,
    settings: TrainConfig,
    device: torch.device,
    folder: Path,
    weights: torch.Tensor | None,
) -> float:
    """Run what is left of the phases. Returns the rows that went through the model now."""
    task = rows.task
    assert task is not None
    encoded = encode(rows, tokenizer, max_length)
    encoded.set_format("python")
    samples = 0.0
    for phase in phases:
        state = folder / phase.name
        if (state / DONE).exists():
            log.info("phase '%s' is done already", phase.name)
            _load_phase(model, state)
            continue
        args = arguments(
            state,
            phase,
            seed=settings.seed,
            bf16=runtime.training_bf16(settings, device),
            device=device,
            extra=settings.training,
        )
        last = get_last_checkpoint(state) if settings.resume and state.is_dir() else None
        if last:
            log.info("phase '%s' goes on from step %s", phase.name, Path(last).name.removeprefix("checkpoint-"))
        per_step = args.train_batch_size * args.gradient_accumulation_steps
        steps = -(-len(encoded) // per_step) * phase.epochs
        with bar(f"training ({phase.name})", round(steps)) as advance:
            report = run_phase(
                model,
                recipe,
                phase,
                args,
                encoded,
                tokenizer,
                advance,
                Path(last) if last else None,
                task,
                weights,
            )
        if not np.isfinite(report["train_loss"]):
            raise ExitkitError(
                f"training diverged: the loss of phase '{phase.name}' is {report['train_loss']}. Lower the learning "
                "rates (--set recipe.learning_rate=2e-5), or check the model's weights for NaN."
            )
        _finish_phase(model, state)
        samples += report["train_samples_per_second"] * report["train_runtime"]
    return samples


def _finish_phase(model: ExitModel, state: Path) -> None:
    """Keep the weights of a finished phase and nothing else of it."""
    from safetensors.torch import save_file

    shutil.rmtree(state)
    state.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, state / "model.safetensors")
    artifact.write_text(state / DONE, json.dumps({"done": True}))


def _load_phase(model: ExitModel, state: Path) -> None:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(state / "model.safetensors"))


def _claim(output: Path, resume: bool, overwrite: bool) -> Path:
    """The folder to work in, `OUTPUT.partial`; refuses to touch anything that it may not."""
    partial = output.with_name(output.name + ".partial")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; name a folder.")
    if output.is_dir() and any(output.iterdir()):
        if not artifact.is_artifact(output):
            raise UsageError(f"--output {output} holds files that are not an exitkit model; name another folder.")
        if not overwrite:
            raise UsageError(f"--output {output} holds a model already. Name another folder, or add --overwrite.")
    if partial.exists() and not resume:
        if (partial / TRAINING).is_dir() or not any(partial.iterdir()):
            if not overwrite and (partial / TRAINING).is_dir() and any((partial / TRAINING).rglob("*.safetensors")):
                raise UsageError(
                    f"{partial} holds an interrupted run. Add --resume to go on with it, or --overwrite to start anew."
                )
            shutil.rmtree(partial)
        else:
            raise UsageError(f"{partial} holds files that are not an interrupted run; remove it first.")
    try:
        (partial / TRAINING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write there: {error.strerror}.") from None
    return partial


@contextmanager
def _model_folder(model: str, seed: int) -> Iterator[str]:
    """Where the model to start from is; built-in ones are made for the occasion."""
    if not model.startswith("demo:"):
        yield model
        return
    if model != "demo:tiny":
        raise UsageError(one_of("built-in model", model, ["demo:tiny"]))
    from exitkit.data import demo

    with tempfile.TemporaryDirectory() as folder, quiet():
        demo.build_model(Path(folder), seed=seed)
        yield folder


def _typed(where: str, value: Any, default: Any) -> Any:
    """An option's value as the type of its default; YAML reads 5e-5 as a string."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise UsageError(f"{where}: {value!r} is not true or false.")
    if isinstance(default, int | float):
        try:
            return type(default)(value)
        except (TypeError, ValueError):
            raise UsageError(f"{where}: {value!r} is not a number.") from None
    return value


def _card(
    settings: TrainConfig,
    model: ExitModel,
    data: TrainingData,
    recipe: Mapping[str, Any],
    max_length: int,
    metric: str,
) -> artifact.Card:
    calibration = data.calibration
    return artifact.Card(
        task=model.task,
        labels=data.task.labels,
        exits=model.exits,
        pooling=model.pooling,
        recipe={**recipe, "epochs": settings.epochs, "seed": settings.seed, "rows": len(data.train)},
        max_length=max_length,
        metric=metric,
        data={**data.train.origin.as_dict(), "indices": None},
        calibration={**calibration.origin.as_dict(), "rows": len(calibration), "hash": calibration.hash()},
        scale=model.shape.scale,
        versions={
            "exitkit": exitkit.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    )
