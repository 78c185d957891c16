"""`exitkit train`: put exits into an encoder and train both."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from exitkit.artifacts.artifact import Artifact
from exitkit.configuration import parsing, runtime
from exitkit.configuration.config import TrainConfig
from exitkit.data.batches import limit
from exitkit.data.catalogue import catalogue
from exitkit.data.columns import Columns
from exitkit.data.fields import paths
from exitkit.data.sources import Rows, only_split, read_from
from exitkit.data.splits import TrainingData, label_array, texts, training_and_calibration
from exitkit.data.taken import taken
from exitkit.engine.heads import choose_pooling
from exitkit.engine.model import ExitModel
from exitkit.errors import UsageError, one_of
from exitkit.measuring.runs import Sample, told_of_words
from exitkit.plugins import Registry, installed
from exitkit.process import outputs
from exitkit.progress import quiet
from exitkit.recipe import Phase
from exitkit.tasks import Regression, Tagging, Task, balanced
from exitkit.training import parity
from exitkit.training.judges import solved
from exitkit.training.options import build, phases_of
from exitkit.training.outcome import card_of, learned_from, publish, report_of, score_exits, score_gates, speed
from exitkit.training.partial import check_output, open_partial, same_run
from exitkit.training.phases import Job, Spent, check, run_phases
from exitkit.training.start import content_of, label_order, starting_model

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
    settings = settings or parsing.parse(TrainConfig, fields)
    parsing.require(settings, "model", "output")
    if settings.data is None:
        raise UsageError("missing --data. Give it on the command line, or in the file of --config.")
    assert settings.output is not None
    output = outputs.target(settings.output, whole_folder=True)
    with outputs.held(output, "train"):
        return _train(settings, output)


def _train(settings: TrainConfig, output: Path) -> dict[str, Any]:
    """Train into a folder that is held."""
    partial = check_output(output, settings.resume, settings.overwrite)
    registry = installed()
    recipe_name, recipe, epochs = build("recipe", settings.recipe, registry.recipe)
    data, label = _data(settings)
    log.info("label: %s", label)
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
    parity.check(model)
    max_length = limit(tokenizer, model.stock.config, settings.max_length)
    attach_probes(model, recipe_name, registry, recipe.probes())
    recipe.prepare(model)
    model.to(device)
    phases = phases_of("recipe", recipe_name, recipe, model, settings.epochs, epochs, start.fine_tuned)
    if start.misfit is not None:
        _head_is_new(f"--model {settings.model} is a fine-tuned classifier, and {start.misfit}", recipe_name, phases)
    if settings.unlabelled is not None and not any(phase.label_free for phase in phases):
        raise UsageError(f"--unlabelled: no phase of recipe '{recipe_name}' can learn without labels.")
    unlabelled = unlabelled_rows(settings.unlabelled, data)
    job = Job(model, tokenizer, recipe, data.train, data.task, max_length, weights, settings, device, unlabelled)
    check(job, phases)
    folder = open_partial(partial, settings.resume)
    content = {
        "training rows": data.train.hash(),
        "weights or tokenizer of --model": content_of(model.stock, tokenizer),
    }
    same_run(partial, settings, content if unlabelled is None else {**content, "unlabelled rows": unlabelled.hash()})
    spent = _run(job, phases, folder, start.fine_tuned)
    sample = Sample(data.evaluation, tokenizer, max_length, data.task, device)
    told = {"name": recipe_name, **dataclasses.asdict(recipe), "model": str(settings.model)}  # type: ignore[call-overload]
    card = card_of(settings, model, data, told, max_length, metric, recipe.probes())
    report = {
        **report_of(model, data, recipe_name, metric, score_exits(model, sample, metric)),
        "label": label,
        **told_of_words(sample),
        **score_gates(Artifact(partial, model, tokenizer, card, {}), registry, sample, metric),
        **speed(spent),
    }
    learned = learned_from(
        [data.train, unlabelled], {str(settings.model): start.fine_tuned or start.misfit is not None}
    )
    publish(partial, folder, output, settings.overwrite, model, tokenizer, card, report, learned)
    return report


def _data(settings: TrainConfig) -> tuple[TrainingData, str]:
    """The rows, with their classes in the order of the classifier that training starts from, if it is one; and what
    their labels were taken for.
    """
    columns = Columns(settings.text_column, settings.pair_column, settings.label_column)

    def read(task: Task | str | None) -> TrainingData:
        return training_and_calibration(settings.data, columns, settings.seed, settings.max_train_samples, task)

    data = read(settings.task)
    label = taken(data.train, settings.task and "as --task says")
    order = label_order(str(settings.model), data.task, settings.label_names)
    return (data if order == data.task.labels else read(replace(data.task, labels=order))), label


def _head_is_new(why: str, recipe: str, phases: Sequence[Phase]) -> None:
    """Say that a classifier's head is not kept. Raises UsageError: the recipe is one that keeps classifiers."""
    if any(phase.fine_tunes for phase in phases):
        raise UsageError(
            f"{why}: recipe '{recipe}', which keeps a fine-tuned classifier as it is, cannot keep it. Give the data "
            "that it is for; or train the encoder too, with another recipe, such as joint, or from the encoder "
            "alone: AutoModel.from_pretrained(folder).save_pretrained(new_folder), with its tokenizer."
        )
    log.warning("%s: a new one is trained, and the encoder with it", why)


def _run(job: Job, phases: Sequence[Phase], folder: Path, fine_tuned: bool) -> Spent:
    """The recipe's judges, if it asks for some, and then its phases."""
    judges = job.recipe.judges()
    if judges is None:
        return run_phases(job, phases, folder)
    if fine_tuned:
        log.warning("the model is a fine-tuned classifier: if it has learnt these rows, judges find few hard")
    found, spent = solved(job, judges, folder)
    return spent + run_phases(replace(job, solved=found), phases, folder)


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


def unlabelled_rows(source: str | None, data: TrainingData) -> Rows | None:
    """The rows of `--unlabelled`, whose labels, if there are any, are not looked at.

    Columns are those of the training rows where they are there, else found by their usual names. Rows that settings
    will be chosen on, or that will be scored, are left out.
    """
    if source is None:
        return None
    train = data.train
    found = catalogue(source)
    split = "train" if "train" in found.tables else only_split(found)
    names, known = found.table(split).names, train.origin.columns
    columns = Columns(*(name if name and paths(name, names) else None for name in (known.text, known.text_pair)))
    kind = Tagging.kind if isinstance(data.task, Tagging) else None
    rows = read_from(found, split, columns, kind, use_labels="ignored")
    if rows.pair != train.pair:
        raise UsageError(f"--unlabelled {source}: must hold {'pairs of texts' if train.pair else 'single texts'}.")
    kept_back = {*texts(data.calibration), *texts(data.evaluation)}
    free = [number for number, text in enumerate(texts(rows)) if text not in kept_back]
    if not free:
        raise UsageError(f"--unlabelled {source}: all its rows are among those kept back for calibration and scores.")
    if len(free) < len(rows):
        log.warning("--unlabelled: %d rows that are kept back for calibration are left out", len(rows) - len(free))
    return rows.select(free) if len(free) < len(rows) else rows


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
