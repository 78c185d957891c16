"""The model that training starts from: an encoder, or somebody's fine-tuned classifier."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from exitkit.artifacts import pretrained
from exitkit.artifacts.cascade import is_cascade
from exitkit.engine.heads import Pooling
from exitkit.engine.model import ExitModel, stock_class
from exitkit.errors import ExitkitError, UsageError
from exitkit.plugins import Registry, installed
from exitkit.tasks import TASKS, Classification, Regression, Tagging, Task
from exitkit.training.checkpoint import (
    TOKENIZER_FILES,
    check_config,
    check_files,
    check_folder,
    check_weights,
    fitting_tokenizer,
)

log = logging.getLogger("exitkit")


@dataclass(frozen=True)
class Start:
    """What training starts from."""

    model: ExitModel
    tokenizer: PreTrainedTokenizerBase
    fine_tuned: bool  # the stock head came with the checkpoint and has an output for each of the data's labels
    labels: tuple[str, ...]  # what the checkpoint calls the outputs of a head that came with it; else empty
    misfit: str | None = None  # of a classifier whose head cannot be kept, why, as part of a sentence; else None


def starting_model(
    source: str,
    task: Task,
    exits: Sequence[int] | None,
    pooling: Pooling,
    registry: Registry,
    scale: float = 1.0,
    option: str = "--model",
    spare: PreTrainedTokenizerBase | None = None,
) -> Start:
    """Load a checkpoint in fp32 with fresh exit heads and, unless it brings a fitting one, a fresh stock head.

    Args:
        source: a Hugging Face id or a folder.
        task: that of the data, with its labels.
        exits: layers that get an exit; None = all. The last one always does.
        pooling: what exits 1..E−1 read.
        registry: knows the encoder families.
        scale: in regression, the standard deviation of the training labels.
        option: what `source` was given with.
        spare: the tokenizer of a checkpoint that brings none.

    Raises:
        UsageError: no such model, one without a tokenizer, an unknown family, or one that plain transformers would run
            otherwise; see `checkpoint`.
        ExitkitError: weights that cannot be read, or that hold NaN.
    """
    config, tokenizer = open_checkpoint(source, option, spare, registry)
    encoder = registry.encoder(config.model_type)
    theirs, head, fitted = classes_of(config, task.kind), head_of(config), fits(config, task)
    check_files(source, option)
    check_config(source, config, encoder, option)
    config.num_labels = task.outputs
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
    config.problem_type = task.problem_type
    try:
        stock, report = pretrained.load_stock(source, task.kind, config, ignore_sizes=True)
    except ExitkitError:
        raise
    except Exception as error:
        raise ExitkitError(f"{option} {source}: cannot be loaded: {' '.join(str(error).split())}") from error
    fresh = check_weights(source, stock, report, option)
    layers = len(encoder(stock).blocks)
    model = ExitModel(stock, encoder, range(1, layers + 1) if exits is None else exits, pooling, scale)
    fine_tuned = fitted and not fresh
    own = tokenizer is not spare
    if task.kind == Tagging.kind and own and not fine_tuned:  # a tagger has learnt words as its tokenizer has them
        tokenizer = _of_words(tokenizer, source, config)
    return Start(
        model,
        fitting_tokenizer(source, tokenizer, stock, option),
        fine_tuned,
        theirs if fine_tuned and theirs and task.labels else (),
        None if fine_tuned or head is None else _misfit(head, fitted, fresh),
    )


def _misfit(head: str, fitted: bool, fresh: Collection[str]) -> str:
    return f"weights of its head are missing ({min(fresh)})" if fitted else f"its head is for {head}"


def _of_words(tokenizer: PreTrainedTokenizerBase, source: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, reading every word of a list as it reads a word of a text.

    Byte-level tokenizers (RoBERTa, ModernBERT) take a word with the blank before it. Words of a list have none, so
    they would become other pieces than those of pre-training, and of the same words in a text at prediction.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.pre_tokenizer, ByteLevel) or backend.pre_tokenizer.add_prefix_space:
        return tokenizer
    again = pretrained.load_tokenizer(source, config, add_prefix_space=True)  # is saved with it
    splits = again.backend_tokenizer.pre_tokenizer
    splits.add_prefix_space = True  # tokenizers without a class of their own do not look at the argument
    again.backend_tokenizer.pre_tokenizer = splits
    return again


def open_checkpoint(
    source: str,
    option: str = "--model",
    spare: PreTrainedTokenizerBase | None = None,
    registry: Registry | None = None,
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Config and tokenizer of a checkpoint, or the `spare` tokenizer where it has none.

    Raises:
        UsageError: it is not there, is of an unknown family, or has no tokenizer; the message names the option.
        ExitkitError: it asks for more than data.
    """
    folder = Path(source)
    check_folder(source, option)
    looks_local = folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not (folder / "config.json").exists():
        what = "there is no such folder" if not folder.exists() else "it has no config.json"
        if is_cascade(folder):
            what = "it is a cascade, which is several models; name one of them"
        raise UsageError(f"{option} {source}: {what}.")
    try:
        config = pretrained.load_config(source, registry or installed())
    except ExitkitError:
        raise
    except Exception as error:
        raise UsageError(
            f"{option} {source}: neither a folder nor a model that can be fetched: {_one_line(error)}"
        ) from error
    found = _tokenizer(source, config, option)
    tokenizer = spare if found is None else found
    if tokenizer is None:
        raise UsageError(
            f"{option} {source}: it has no tokenizer (tokenizer.json, or what its family has instead). Save the "
            "one that the model was trained with beside it: tokenizer.save_pretrained(folder)."
        )
    return config, tokenizer


def _tokenizer(source: str, config: PreTrainedConfig, option: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint, or None where there is none."""
    try:
        tokenizer = pretrained.load_tokenizer(source, config)
    except ExitkitError:
        raise
    except Exception as error:
        folder = Path(source)
        if folder.is_dir() and not any(file.name.startswith(TOKENIZER_FILES) for file in folder.iterdir()):
            return None  # some families say so, others make one without words
        raise UsageError(f"{option} {source}: its tokenizer cannot be read: {_one_line(error)}") from error
    return None if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens) else tokenizer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def label_order(source: str, task: Task, names: Sequence[str] | None) -> tuple[str, ...]:
    """The data's class names in the order of the outputs of the classifier that training starts from.

    An encoder, or a classifier for another task or number of classes, gets a new head and keeps the data's order.

    Args:
        source: a Hugging Face id, a folder, or a built-in model.
        task: that of the data.
        names: the order as the user gives it, or None.

    Raises:
        UsageError: the classes have other names than the data's, so that their order is anybody's guess.
    """
    known = ", ".join(task.labels)
    if names is not None:
        if sorted(names) != sorted(task.labels):
            raise UsageError(
                f"--label-names {','.join(names)}: must be the labels of the data, each once, in the order of the "
                f"model's outputs. The data has {known or 'no classes'}."
            )
        return tuple(names)
    if source.startswith("demo:"):
        return task.labels
    config, _ = open_checkpoint(source)
    theirs = classes_of(config, task.kind)
    if theirs is None or len(theirs) != len(task.labels) or not fits(config, task):
        return task.labels
    if sorted(theirs) == sorted(task.labels):
        return theirs
    raise UsageError(
        f"--model {source} is a classifier for the labels {', '.join(theirs)}; the data has {known}. Say which is "
        f"which: --label-names, with the data's labels in the order of the model's (such as {','.join(task.labels)})."
    )


def fits(config: PreTrainedConfig, task: Task) -> bool:
    """Whether a checkpoint's head is for such a task, with as many outputs, whatever they are called."""
    theirs = classes_of(config, task.kind)
    return theirs is not None and len(theirs) == task.outputs and config.problem_type in (None, task.problem_type)


def head_of(config: PreTrainedConfig) -> str | None:
    """What the head of a fine-tuned checkpoint is for, such as "multi-label with 2 labels"; None for an encoder."""
    tags, labels = classes_of(config, Tagging.kind), classes_of(config, Classification.kind)
    if tags is not None:
        return f"{Tagging.kind} with {len(tags)} tags"
    if labels is None:
        return None
    kind = kind_of(config)
    return kind if kind == Regression.kind else f"{kind} with {len(labels)} labels"


def kind_of(config: PreTrainedConfig) -> str:
    """The kind of task that a fine-tuned classifier of texts is for; a single output without a word is a regression."""
    kinds = {known.problem_type: kind for kind, known in TASKS.items() if known.problem_type is not None}
    return kinds.get(config.problem_type, Regression.kind if config.num_labels == 1 else Classification.kind)


def content_of(stock: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, more: str = "") -> str:
    """16 hex digits over a stock model's weights and config and what a tokenizer does, not over names and places."""
    digest = hashlib.sha256()
    config = stock.config.to_dict()
    told = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    for name, value in sorted(stock.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    if tokenizer is not None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        how = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
        digest.update(how.encode())
    digest.update(more.encode())
    return digest.hexdigest()[:16]


def classes_of(config: PreTrainedConfig, kind: str) -> tuple[str, ...] | None:
    """The labels of a classifier fine-tuned for such a task in order; None for anything else."""
    wanted = stock_class(kind).__name__.removeprefix("AutoModel")
    if not any(name.endswith(wanted) for name in config.architectures or []):
        return None
    return tuple(config.id2label[number] for number in sorted(config.id2label))
