"""Whether a checkpoint of somebody's can be run as plain transformers runs it: one check for all that start from one.

A checkpoint is a folder or an id of the hub. What would make the last exit answer otherwise than plain transformers is
made right where only one way is right, and refused with a way out where there are several.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from exitkit.data.lfs import WAY_OUT, is_pointer
from exitkit.engine.encoders.base import Encoder
from exitkit.errors import ExitkitError, UsageError

log = logging.getLogger("exitkit")

TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "spm", "sentencepiece", "bpe")
"""How the names of all files begin that some tokenizer is read from."""

ADAPTER = "adapter_config.json"

TYPES = "token_type_ids"

UNREAD = re.compile(r"(^|\.)pooler\.|\.(position_ids|token_type_ids|inv_freq|_weight)$")
"""Weights of an encoder that no answer depends on where the stock class has none of that name: a pooler that its head
does not read, numbers that are computed anew, and the second name that some checkpoints give a table."""

LAYER = re.compile(r"\blayers?\.(\d+)\.")


def check_folder(source: str, option: str) -> None:
    """Raise UsageError for a folder whose files are pointers of Git LFS, or an adapter to another model."""
    folder = Path(source)
    if not folder.is_dir():
        return
    if (folder / ADAPTER).exists():
        raise UsageError(
            f"{option} {source}: it is a PEFT adapter{_base_of(folder / ADAPTER)}, not a model. Merge it with "
            "PEFT, AutoPeftModelForSequenceClassification.from_pretrained(folder).merge_and_unload(), save that and "
            "the tokenizer, and give their folder."
        )
    for file in sorted(_files_read(folder)):
        if is_pointer(file):
            raise UsageError(f"{option} {source}: {file.name} is {WAY_OUT}.")


def _base_of(adapter: Path) -> str:
    """The model that an adapter belongs to, as part of a sentence."""
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" to {base}"


def _files_read(folder: Path) -> list[Path]:
    """The files of a checkpoint that loading it reads; older ways to write a tokenizer only where there is no newer."""
    found = [*folder.glob("*.json"), *folder.glob("*.safetensors")]
    if not (folder / "tokenizer.json").exists():
        found += [file for file in folder.iterdir() if file.name.startswith(TOKENIZER_FILES)]
    return found


def check_files(source: str, option: str) -> None:
    """Raise UsageError for a folder without weights that exitkit reads."""
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")):
        raise UsageError(
            f"{option} {source}: the weights are a pickle (.bin), which exitkit does not read. Convert them where you "
            "trust them: AutoModel.from_pretrained(folder).save_pretrained(new_folder)."
        )
    raise UsageError(f"{option} {source}: there is no model.safetensors in it.")


def check_config(source: str, config: PreTrainedConfig, encoder: type[Encoder], option: str) -> None:
    """Find out whether the arithmetic that a config asks for is its family's, and that the family's is ours.

    What a stock model does not heed is taken out of the config: code of the checkpoint's own, and tuples for answers.

    Raises UsageError: it is not.
    """
    why = encoder.refusal(config) or _other_positions(config)
    if why is not None:
        raise UsageError(f"{option} {source}: {why}")
    config.return_dict = True
    foreign = getattr(config, "auto_map", None)
    if foreign and _is_stock(config):
        log.warning(
            "%s %s was made for code of its own (auto_map: %s), which is not run: its weights are read as a plain "
            "'%s'. Where that code computes anything else, this is another model than its author's",
            option,
            source,
            ", ".join(sorted({str(name) for name in foreign.values()})),
            config.model_type,
        )
        del config.auto_map  # or plain transformers would look for that code in what is saved


def _is_stock(config: PreTrainedConfig) -> bool:
    """Whether transformers itself has the family; a package that brings its own may well bring code and fields."""
    return type(config).__module__.startswith("transformers.")


def _other_positions(config: PreTrainedConfig) -> str | None:
    """Why positions are not told apart as the model has learnt to, as a sentence; None where they are."""
    kind = getattr(config, "position_embedding_type", None)
    if kind in (None, "absolute") or not _is_stock(config) or hasattr(type(config), "position_embedding_type"):
        return None
    return (
        f"its position_embedding_type is {kind!r}, and transformers has only absolute positions for "
        f"'{config.model_type}', so that it would be read as another model. Use a checkpoint with absolute positions."
    )


def check_weights(source: str, stock: PreTrainedModel, report: Mapping[str, Any], option: str) -> frozenset[str]:
    """Find out whether a stock model got all of its encoder's weights from a checkpoint, and all that it has.

    Heads of other tasks are left out of it.

    Args:
        source: folder or id.
        stock: the model.
        report: of transformers, what it missed and did not expect.
        option: what `source` was given with.

    Returns:
        The names of weights that are random: of the stock head, and of a pooler.

    Raises:
        UsageError: the checkpoint has encoder weights that the stock class has no place for.
        ExitkitError: it lacks some, or some are NaN.
    """
    fresh = frozenset({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    lost = sorted(key for key in fresh if key.startswith(stock.base_model_prefix) and "pooler" not in key)
    if lost:
        raise ExitkitError(f"{option} {source}: the checkpoint lacks {len(lost)} encoder weights, such as {lost[0]}.")
    spare, strange = _without_place(stock, report["unexpected_keys"])
    if strange:
        raise UsageError(
            f"{option} {source}: the checkpoint has {len(strange)} encoder weights that {type(stock).__name__} has no "
            f"place for, such as {strange[0]}. It was made by other code, and would answer as another model. Use one "
            "that plain transformers loads whole."
        )
    if spare:
        log.warning(
            "%s %s: its config has %d layers, and weights of further ones (such as %s) are left out",
            option,
            source,
            stock.config.num_hidden_layers,
            spare[0],
        )
    for name, value in stock.named_parameters():
        if not torch.isfinite(value).all():
            raise ExitkitError(f"{option} {source}: weight {name} holds NaN or infinite values.")
    return fresh


def _without_place(stock: PreTrainedModel, unexpected: Sequence[str]) -> tuple[list[str], list[str]]:
    """Encoder weights among those that the stock class has no place for: of layers past the config's, and others.

    A checkpoint of the encoder alone names them without the prefix that they have in a model with a head.
    """
    prefix = f"{stock.base_model_prefix}."
    parts = tuple(f"{name}." for name, _ in stock.base_model.named_children())
    spare: list[str] = []
    strange: list[str] = []
    for key in sorted(unexpected):
        if not key.startswith((prefix, *parts)) or UNREAD.search(key):
            continue
        layer = LAYER.search(key)
        past = layer is not None and int(layer[1]) >= int(stock.config.num_hidden_layers)
        (spare if past else strange).append(key)
    return spare, strange


def fitting_tokenizer(
    source: str, tokenizer: PreTrainedTokenizerBase, stock: PreTrainedModel, option: str
) -> PreTrainedTokenizerBase:
    """The tokenizer, giving only what the model has an embedding for.

    A model with a single token type gets none: it then takes the one that it has, in plain transformers too, because
    the tokenizer is saved so. Raises UsageError: tokens, or types beside others, without an embedding.
    """
    rows, tokens = stock.get_input_embeddings().weight.shape[0], most_tokens(tokenizer)
    if tokens > rows:
        raise UsageError(
            f"{option} {source}: it has embeddings for {rows} tokens, and its tokenizer has {tokens}. If tokens were "
            f"added to the tokenizer, the model must have learnt them: model.resize_token_embeddings({tokens}), train "
            "it with them, and save both. Otherwise save the tokenizer that the model was trained with beside it."
        )
    known, types = getattr(stock.config, "type_vocab_size", None), most_types(tokenizer)
    if not known or types <= known:
        return tokenizer
    if known > 1:
        raise UsageError(
            f"{option} {source}: it has {known} token types (type_vocab_size), and its tokenizer gives a pair of texts "
            f"{types}. Save the tokenizer that the model was trained with beside it."
        )
    return _without_types(tokenizer)


def most_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many embeddings its ids need."""
    return int(max(tokenizer.get_vocab().values())) + 1


def most_types(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many token types it gives the tokens of a pair of texts."""
    return int(max(tokenizer("a", "a").get(TYPES, [0]))) + 1


def _without_types(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that gives no token types, and is saved so."""
    bare: PreTrainedTokenizerBase = copy.deepcopy(tokenizer)
    names = [name for name in bare.model_input_names if name != TYPES]
    bare.model_input_names = names
    bare.init_kwargs["model_input_names"] = names
    return bare
