"""The one door to transformers: configs, tokenizers and models are loaded here and nowhere else.

A checkpoint is data. What is in it never runs and never makes transformers ask whether it may: its config is read as
plain JSON first, and is refused where it names a family that nobody registered or makes transformers run or fetch
more than the checkpoint itself. An `auto_map`, which names classes in files of the checkpoint, is not followed.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import DummyObject, cached_file

from exitkit.engine.model import stock_class
from exitkit.errors import ExitkitError
from exitkit.plugins import Registry
from exitkit.progress import quiet

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER = "adapter_config.json"

ATTENTION = (None, "eager", "sdpa")
"""What a config may ask attention to be. Any other name is fetched and run: kernels of the hub, for one."""

ELSEWHERE = ("configuration_files", "transformers_weights", "quantization_config")
"""Fields of a config that make transformers read other files than those that are looked at, or run other kernels."""


def load_config(source: str | Path, registry: Registry, local: bool = False) -> PreTrainedConfig:
    """The config of a checkpoint, or a config file.

    Args:
        source: a folder, a file, or a Hugging Face id.
        registry: knows the encoder families.
        local: nothing is fetched.

    Raises:
        UsageError: a family that nobody registered.
        ExitkitError: it asks for more than data.
        Exception: what transformers raises for a config that is missing or damaged.
    """
    plain = _plain(source, CONFIG, local)
    _check_config(source, plain)
    family = plain.get("model_type")
    if family is not None:
        registry.encoder(str(family))
    config: PreTrainedConfig = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    registry.encoder(config.model_type)  # of old configs without the field transformers tells it by the name
    return config


def load_tokenizer(
    source: str | Path, config: PreTrainedConfig, local: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint whose config is loaded.

    Args:
        source: a folder or a Hugging Face id.
        config: of the same checkpoint, from `load_config`.
        local: nothing is fetched.
        options: of the tokenizer's class.

    Raises:
        ExitkitError: it asks for more than data.
        Exception: what transformers raises for a tokenizer that is missing or damaged.
    """
    plain = _plain(source, TOKENIZER_CONFIG, local)
    for name in (plain.get("tokenizer_class"), getattr(config, "tokenizer_class", None)):
        _check_tokenizer_class(source, name)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source, config=config, local_files_only=local, trust_remote_code=False, **options
    )
    return tokenizer


def load_stock(
    source: str | Path, kind: str, config: PreTrainedConfig, local: bool = False, ignore_sizes: bool = False
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The stock model of a checkpoint for a kind of task, in fp32, and transformers' report of its weights.

    Args:
        source: a folder or a Hugging Face id.
        kind: of task.
        config: of the same checkpoint, from `load_config`; what was changed in it holds.
        local: nothing is fetched.
        ignore_sizes: weights of other sizes than the config's are left out and reported, not an error.

    Raises:
        ExitkitError: the folder holds an adapter.
        Exception: what transformers raises for weights that are missing or damaged.
    """
    if (Path(source) / ADAPTER).exists():
        raise ExitkitError(
            f"{source} holds an adapter ({ADAPTER}), which would change the model. Merge it into the model and save "
            "that, or remove its files."
        )
    with quiet():
        stock, report = stock_class(kind).from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            local_files_only=local,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=ignore_sizes,
            output_loading_info=True,
        )
    return stock, report


def new_stock(kind: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A stock model for a kind of task with random weights, in fp32."""
    made: PreTrainedModel = stock_class(kind).from_config(config, dtype=torch.float32, trust_remote_code=False)
    return made


def _plain(source: str | Path, name: str, local: bool) -> dict[str, Any]:
    """A JSON file of a checkpoint that holds an object; empty where it is missing."""
    path = Path(source)
    file: Path | str | None = path if path.is_file() else path / name
    if path.is_dir():
        file = file if (path / name).is_file() else None
    elif not path.is_file():
        file = cached_file(str(source), name, local_files_only=local, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return {}
    found = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{name} does not hold a JSON object")
    return found


def _check_config(source: str | Path, plain: dict[str, Any]) -> None:
    """Raise ExitkitError for a config that makes transformers run or read more than the checkpoint's own data."""
    for key, value in plain.items():
        if key.strip("_").startswith("attn_implementation") and value not in ATTENTION:
            raise ExitkitError(
                f"{source}: {CONFIG} asks for the attention {value!r} ({key}), which would be fetched and run. Remove "
                "that line; exitkit has attention of its own."
            )
        if key in ELSEWHERE and value:
            raise ExitkitError(
                f"{source}: {CONFIG} has {key}, which exitkit does not follow. Load the model where you trust it and "
                "save it again as plain fp32 weights in model.safetensors."
            )


def _check_tokenizer_class(source: str | Path, name: object) -> None:
    """Raise ExitkitError for the name of a class of transformers that is no tokenizer.

    transformers would load it all the same, and some of those classes ask whether to run code of the checkpoint.
    """
    if name is None:
        return
    found = getattr(transformers, name, None) if isinstance(name, str) else name
    tokenizer = inspect.isclass(found) and issubclass(found, PreTrainedTokenizerBase)
    if found is not None and not tokenizer and not isinstance(found, DummyObject):  # a dummy says what to install
        raise ExitkitError(
            f"{source}: tokenizer_class {name!r} is no tokenizer of transformers; see {TOKENIZER_CONFIG} and {CONFIG}."
        )
