"""The model that training starts from: an encoder, or somebody's fine-tuned classifier."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from exitkit.errors import ExitkitError, UsageError
from exitkit.heads import Pooling
from exitkit.model import ExitModel
from exitkit.plugins import Registry
from exitkit.progress import quiet
from exitkit.tasks import Task

log = logging.getLogger("exitkit")


def starting_model(
    source: str,
    task: Task,
    exits: Sequence[int] | None,
    pooling: Pooling,
    registry: Registry,
    scale: float = 1.0,
) -> tuple[ExitModel, PreTrainedTokenizerBase]:
    """Load a checkpoint in fp32 with fresh exit heads and, unless it brings a fitting one, a fresh stock head.

    Args:
        source: a Hugging Face id or a folder.
        task: that of the data, with its labels.
        exits: layers that get an exit; None = all.
        pooling: what exits 1..E−1 read.
        registry: knows the encoder families.
        scale: in regression, the standard deviation of the training labels.

    Raises:
        UsageError: no such model, an unknown family, or a classifier with other labels.
        ExitkitError: weights that cannot be read, or that hold NaN.
    """
    config, tokenizer = _open(source)
    encoder = registry.encoder(config.model_type)
    _check_labels(source, config, task)
    _check_weights(source)
    config.num_labels = task.outputs
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
    config.problem_type = task.problem_type
    try:
        with quiet():
            stock, report = AutoModelForSequenceClassification.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise ExitkitError(f"--model {source}: cannot be loaded: {' '.join(str(error).split())}") from error
    fresh = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    lost = [key for key in fresh if key.startswith(stock.base_model_prefix) and "pooler" not in key]
    if lost:
        raise ExitkitError(f"--model {source}: the checkpoint lacks {len(lost)} encoder weights, such as {lost[0]}.")
    for name, value in stock.named_parameters():
        if not torch.isfinite(value).all():
            raise ExitkitError(f"--model {source}: weight {name} holds NaN or infinite values.")
    layers = len(encoder(stock).blocks)
    return ExitModel(stock, encoder, exits or range(1, layers + 1), pooling, scale), tokenizer


def _open(source: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    folder = Path(source)
    looks_local = folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not (folder / "config.json").exists():
        what = "there is no such folder" if not folder.exists() else "it has no config.json"
        raise UsageError(f"--model {source}: {what}.")
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise UsageError(
            f"--model {source}: neither a folder nor a model that can be fetched: {' '.join(str(error).split())[:300]}"
        ) from error
    return config, tokenizer


def _check_labels(source: str, config: PreTrainedConfig, task: Task) -> None:
    """A classifier's head can be kept only if its classes are the data's, in the same order."""
    trained = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    theirs = [config.id2label[number] for number in sorted(config.id2label)]
    if not trained or len(theirs) != task.outputs or theirs == list(task.labels) or not task.labels:
        return
    raise UsageError(
        f"--model {source} is a classifier for the labels {', '.join(theirs)}; the data has {', '.join(task.labels)}. "
        "Rename the labels in one of them so that names and order agree."
    )


def _check_weights(source: str) -> None:
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")):
        raise UsageError(
            f"--model {source}: the weights are a pickle (.bin), which exitkit does not read. Convert them where you "
            "trust them: AutoModel.from_pretrained(folder).save_pretrained(new_folder)."
        )
    raise UsageError(f"--model {source}: there is no model.safetensors in it.")
