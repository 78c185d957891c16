"""`exitkit train`: put exits into an encoder and train both."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerBase, set_seed

import exitkit
from exitkit import artifact, config, model_card, runtime
from exitkit.artifact import Artifact
from exitkit.config import Choice, TrainConfig
from exitkit.data.batches import limit
from exitkit.data.columns import Columns
from exitkit.data.sources import Rows, read, splits
from exitkit.data.splits import TrainingData, label_array, training_and_calibration
from exitkit.errors import UsageError, one_of
from exitkit.heads import choose_pooling
from exitkit.measure import Sample, full_model, gates_only, run_all, score
from exitkit.model import ExitModel
from exitkit.plugins import Registry, installed
from exitkit.policy import has_gates
from exitkit.progress import bar, quiet
from exitkit.recipe import Phase, Recipe
from exitkit.replay import record
from exitkit.tasks import Regression, Task, balanced, needs_labels
from exitkit.training.partial import check_output, open_partial, same_run
from exitkit.training.phases import Job, check, run_phases
from exitkit.training.start import Start, label_order, starting_model

log = logging.getLogger("exitkit")


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
    partial = check_output(settings.output, settings.resume, settings.overwrite)
    registry = installed()
    recipe_name, recipe, epochs = build_recipe(settings.recipe, registry)
    data = _data(settings)
    metric = settings.metric or data.task.default_metric
    data.task.metric(metric)  # refuse a misspelt label before training, not after
    weights = class_weights(settings.class_weights, data.train)
    scale = float(np.std(label_array(data.train))) if isinstance(data.task, Regression) else 1.0
    device = runtime.device(settings)
    set_seed(settings.seed)
    with _model_folder(str(settings.model), settings.seed) as source:
        start = starting_model(
            source, data.task, settings.exits, choose_pooling(settings.pooling, data.task.kind), registry, scale
        )
    model, tokenizer = start.model, start.tokenizer
    max_length = limit(tokenizer, model.stock.config, settings.max_length)
    attach_probes(model, recipe_name, registry, recipe.probes())
    recipe.prepare(model)
    model.to(device)
    phases = _phases(recipe, recipe_name, start, settings.epochs, epochs)
    unlabelled = _unlabelled(settings, data.train, phases)
    job = Job(model, tokenizer, recipe, data.train, max_length, weights, settings, device, unlabelled)
    check(job, phases)
    folder = open_partial(partial, settings.resume)
    same_run(partial, settings, data.train.hash())
    spent = run_phases(job, phases, folder)
    card = _card(settings, model, data, recipe_name, recipe, max_length, metric)
    report = {
        "task": model.task,
        "recipe": recipe_name,
        "metric": metric,
        "split": data.evaluation.origin.split + (" (set aside)" if data.evaluation.origin.indices else ""),
        "rows": len(data.evaluation),
        "pooling": model.pooling,
        "exits": score_exits(model, tokenizer, data.evaluation, max_length, metric, device),
        **score_gates(Artifact(partial, model, tokenizer, card, {}), registry, data.evaluation, metric),
        "train_seconds": round(spent.seconds, 3),
        "samples_per_second": round(spent.samples / max(spent.seconds, 1e-9), 3),
    }
    artifact.write(partial, model, tokenizer, card)
    artifact.write_metrics(partial, report)
    model_card.write(partial, card, report, {})
    shutil.rmtree(folder)
    artifact.publish(partial, settings.output)
    return report


def build_recipe(choice: Choice, registry: Registry) -> tuple[str, Recipe, dict[str, float]]:
    """The recipe of a configuration with its options, and epochs by phase where they are given.

    `recipe.OPTION` is an option, `recipe.PHASE.epochs` the epochs of a phase. Raises UsageError for an unknown name or
    option; the names of phases are checked when they are known.
    """
    if len(choice.name) != 1:
        raise UsageError(f"--recipe: exactly one recipe is needed, not {len(choice.name)}.")
    name = choice.name[0]
    recipe = registry.recipe(name)
    known = {field.name: field for field in dataclasses.fields(recipe)}  # type: ignore[arg-type]
    options, epochs = {}, {}
    for option, value in choice.options.items():
        if option not in known and isinstance(value, Mapping) and set(value) == {"epochs"}:
            epochs[option] = float(_typed(f"recipe.{option}.epochs", value["epochs"], 1.0))
            if not 0 < epochs[option] < np.inf:
                raise UsageError(f"recipe.{option}.epochs: {value['epochs']} is not a number above 0.")
            continue
        if option not in known:
            raise UsageError(one_of(f"option of recipe '{name}'", option, known))
        options[option] = _typed(f"recipe.{option}", value, known[option].default)
    return name, recipe(**options), epochs


def _data(settings: TrainConfig) -> TrainingData:
    """The rows, with their classes in the order of the classifier that training starts from, if it is one."""
    columns = Columns(settings.text_column, settings.pair_column, settings.label_column)

    def read(task: Task | str | None) -> TrainingData:
        return training_and_calibration(settings.data, columns, settings.seed, settings.max_train_samples, task)

    data = read(settings.task)
    order = label_order(str(settings.model), data.task, settings.label_names)
    return data if order == data.task.labels else read(replace(data.task, labels=order))


def _phases(recipe: Recipe, name: str, start: Start, epochs: float, of_phases: Mapping[str, float]) -> list[Phase]:
    """The phases to run, without fine-tuning where the model comes fine-tuned."""
    phases = list(recipe.phases(start.model, epochs))
    names = [phase.name for phase in phases]
    for given in of_phases:
        if given not in names:
            raise UsageError(one_of(f"option or phase of recipe '{name}'", given, names))
    phases = [replace(phase, epochs=of_phases.get(phase.name, phase.epochs)) for phase in phases]
    left = [phase for phase in phases if not (phase.fine_tunes and start.fine_tuned)]
    for phase in phases:
        if phase not in left:
            log.warning("the model is a fine-tuned classifier of these labels: phase '%s' is left out", phase.name)
    return left


def attach_probes(
    model: ExitModel, recipe: str, registry: Registry, built_with: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Give the model the probes of all policies that this recipe trains, built as `Recipe.probes` says.

    Raises UsageError: a policy does not know what its probe is to be built with.
    """
    for name in registry.names("policy"):
        policy = registry.policy(name)
        if policy.trained_by != recipe:
            continue
        try:
            probe = policy.probe(model.shape, **(built_with or {}).get(name, {}))
        except ValueError as error:
            raise UsageError(f"recipe '{recipe}': {error}.") from None
        if probe is not None:
            model.probes[name] = probe


def _unlabelled(settings: TrainConfig, train: Rows, phases: Sequence[Phase]) -> Rows | None:
    """The rows of `--unlabelled`, whose labels, if there are any, are not looked at."""
    if settings.unlabelled is None:
        return None
    if not any(phase.label_free for phase in phases):
        raise UsageError(f"--unlabelled: no phase of recipe '{settings.recipe.name[0]}' can learn without labels.")
    columns = Columns(train.origin.columns.text, train.origin.columns.text_pair)
    source = settings.unlabelled
    split = "train" if "train" in splits(source) else None
    rows = read(source, split, columns, use_labels="ignored")
    if rows.pair != train.pair:
        raise UsageError(f"--unlabelled {source}: must hold {'pairs of texts' if train.pair else 'single texts'}.")
    return rows


def score_exits(
    model: ExitModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    max_length: int,
    metric: str,
    device: torch.device,
) -> list[dict[str, float]]:
    """Score of every exit on some rows."""
    task = rows.task
    assert task is not None
    sample = Sample(rows, tokenizer, max_length, task, device)
    truth = sample.truth
    assert truth is not None
    model.eval()
    with bar("scoring exits", len(rows)) as advance:

        def moving() -> Iterator[dict[str, torch.Tensor]]:
            for batch in sample.batches(64):
                yield batch
                advance(64)

        recording = record(model, moving())
    answers = [sample.answers(logits) for logits in recording.logits]
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


def score_gates(model: Artifact, registry: Registry, rows: Rows, metric: str) -> dict[str, Any]:
    """What a model with gates scores at its last exit with and without them, and what share of each layer they skip.

    Shares are of tokens. Empty for a model without gates.
    """
    name = next((name for name in model.model.probes if has_gates(registry.policy(name))), None)
    if name is None:
        return {}
    model.model.eval()
    sample = Sample.of(rows, model)
    batches = sample.batches(64)
    gated = run_all(model, batches, gates_only(name, model, registry), "scoring gates")
    full = run_all(model, batches, full_model(model, registry), "scoring without gates")
    scored = score(model.task, metric, sample.truth, *(sample.answers(one.logits) for one in (gated, full)))
    skipped = [1 - queries / gated.work.tokens for queries in gated.work.queries]
    _warn_of_idle_gates(skipped)
    return {
        "gated_score": scored.score,
        "ungated_score": scored.full_score,
        "skip_rate": sum(skipped) / len(skipped),
        "skipped": skipped,
    }


def _warn_of_idle_gates(skipped: Sequence[float]) -> None:
    """Gates that treat all rows alike cost something and decide nothing."""
    for share, what in ((1.0, "every row"), (0.0, "no row")):
        layers = [str(layer) for layer, found in enumerate(skipped, start=1) if found == share]
        if layers:
            log.warning("the gates of these layers skip %s: %s", what, ", ".join(layers))


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
    recipe_name: str,
    recipe: Recipe,
    max_length: int,
    metric: str,
) -> artifact.Card:
    calibration = data.calibration
    options: dict[str, Any] = dataclasses.asdict(recipe)  # type: ignore[call-overload]
    built_with = recipe.probes()
    chosen = {"epochs": settings.epochs, "seed": settings.seed}
    return artifact.Card(
        task=model.task,
        labels=data.task.labels,
        exits=model.exits,
        pooling=model.pooling,
        recipe={"name": recipe_name, **options, "model": str(settings.model), **chosen, "rows": len(data.train)},
        max_length=max_length,
        metric=metric,
        data={**data.train.origin.as_dict(), "indices": None},
        calibration={**calibration.origin.as_dict(), "rows": len(calibration), "hash": calibration.hash()},
        scale=model.shape.scale,
        probes={name: dict(built_with[name]) for name in model.probes if name in built_with},
        versions={
            "exitkit": exitkit.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    )
