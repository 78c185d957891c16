"""The folder that a model is saved in. It loads as a plain transformers checkpoint; exits lie beside it.

    config.json, model.safetensors, tokenizer files   the full model
    exits.safetensors                                 exit heads 1..E−1 and probes
    exitkit.yaml                                      what the exits are and what they were trained on
    policy.yaml                                       what calibrate found
    metrics.json                                      score per exit, from train
    search-POLICY.jsonl                               runs of a search that calibrate has not finished

No file is a pickle, and none is read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from exitkit import layout, outputs, pretrained
from exitkit.data.batches import Reader
from exitkit.errors import ExitkitError, UsageError
from exitkit.lfs import WAY_OUT, is_pointer
from exitkit.model import ExitModel, Exits
from exitkit.outputs import write_text
from exitkit.plugins import Registry
from exitkit.progress import quiet
from exitkit.tasks import Classification, MultiLabel, Tagging, Task, task

FORMAT = 1
CARD = "exitkit.yaml"
WEIGHTS = "model.safetensors"
EXITS = "exits.safetensors"
POLICY = "policy.yaml"
METRICS = "metrics.json"
README = "README.md"
MARK = "<!-- written by exitkit: remove this line to keep your own changes -->"
"""Stands in a model card that is exitkit's; one without it is somebody's own."""
KNOWN = re.compile(
    r"config\.json|generation_config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|exits\.safetensors"
    r"|training-texts\.safetensors|exitkit\.yaml|policy\.yaml(\.partial)?|metrics\.json|search-[\w-]+\.jsonl|modeling_\w+\.py|configuration_\w+\.py"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)|merges\.txt"
    r"|layer_map\.png|spiece\.model|sentencepiece(\.bpe)?\.model|tokenizer\.model|spm\.model|chat_template\.jinja"
)
"""Names that exitkit, transformers and its tokenizers write at the top of an artifact."""
ENTRY = {"chosen", "frontier", "currency", "batch_size", "precision", "threads", "calibration"}

log = logging.getLogger("exitkit")


@dataclass(frozen=True)
class Card:
    """exitkit.yaml: what cannot be read from the checkpoint."""

    task: str
    labels: tuple[str, ...]
    exits: tuple[int, ...]  # layers, from 1
    pooling: str
    recipe: dict[str, Any]
    max_length: int
    metric: str
    data: dict[str, Any]  # Origin of the training rows
    calibration: dict[str, Any]  # Origin of the calibration rows, their number and content hash
    scale: float = 1.0  # in regression, the standard deviation of the training labels
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)  # by policy, what its probe was built with
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A loaded folder."""

    folder: Path
    model: Exits
    tokenizer: PreTrainedTokenizerBase
    card: Card
    policies: dict[str, Any]  # policy.yaml; empty before calibrate
    others: Mapping[str, Reader] = field(default_factory=dict)
    """In a cascade, how smaller models read a row where they do it in their own way: by the prefix of their tokens'
    names in a batch, see `stream.own`."""
    content: tuple[str, ...] = ()
    """In a cascade, digests of its models, so that calibrated settings are known to be theirs."""

    @property
    def task(self) -> Task:
        """What the model was trained for."""
        return task(self.card.task, self.card.labels)

    @property
    def readers(self) -> Mapping[str, Reader]:
        """All ways in which rows are read, by the prefix of the tokens' names; the full model's is empty."""
        return {"": Reader(self.tokenizer, self.card.max_length), **self.others}

    @property
    def default_policy(self) -> str:
        """The policy where nobody chose one."""
        if self.card.task == Tagging.kind and not self.model.shape.words_halt:
            return "sentence"
        chosen = self.card.task in (Classification.kind, MultiLabel.kind)  # among classes, with a probability
        return "cascade" if chosen and len(self.model.models) > 1 else self.task.default_policy


@dataclass(frozen=True)
class ModelArtifact(Artifact):
    """A loaded folder of one model."""

    model: ExitModel


def write(folder: Path, model: ExitModel, tokenizer: PreTrainedTokenizerBase, card: Card) -> None:
    """Write everything but metrics and policies into an existing folder."""
    exits = {f"heads.{name}": value for name, value in model.heads.state_dict().items()}
    for policy, probe in model.probes.items():
        exits |= {f"probe/{policy}/{name}": value for name, value in probe.state_dict().items()}
    plain = {"format": FORMAT, **vars(card), "labels": list(card.labels), "exits": list(card.exits)}
    with writing(folder):
        with quiet():
            model.stock.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        alone = {name: value.clone().contiguous() for name, value in exits.items()}  # some share modules
        save_file(alone, folder / EXITS)
        write_text(folder / CARD, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None))


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """metrics.json."""
    write_text(folder / METRICS, json.dumps(metrics, indent=2) + "\n")


def write_policies(folder: Path, policies: dict[str, Any]) -> None:
    """policy.yaml."""
    write_text(folder / POLICY, yaml.safe_dump(policies, sort_keys=False, default_flow_style=None))


def read(
    folder: Path,
    registry: Registry,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> ModelArtifact:
    """Load an artifact, in evaluation mode.

    Raises:
        UsageError: the folder is not an artifact.
        ExitkitError: a file is missing or damaged; the message names it.
    """
    card = read_card(folder)
    for name in ("config.json", WEIGHTS):
        if not (folder / name).exists():
            raise ExitkitError(
                f"{folder / name} is missing. The folder is damaged; train it again or restore the file."
            )
        if is_pointer(folder / name):
            raise ExitkitError(f"{folder / name} is {WAY_OUT}.")
    with _told(folder / pretrained.CONFIG):
        config = pretrained.load_config(folder, registry, local=True)
    with _told(folder):
        tokenizer = pretrained.load_tokenizer(folder, config, local=True)
    encoder = registry.encoder(config.model_type)
    with _told(folder / WEIGHTS):
        stock, report = pretrained.load_stock(folder, card.task, config, local=True)
    if report["missing_keys"]:
        raise ExitkitError(
            f"{folder / WEIGHTS} lacks weights ({sorted(report['missing_keys'])[0]}, …). "
            "The folder is damaged; train it again or restore the file."
        )
    model = ExitModel(stock, encoder, card.exits, card.pooling, card.scale)  # type: ignore[arg-type]  # checked by read_card
    _load_exits(folder / EXITS, model, registry, card.probes)
    model = model.to(device=device, dtype=dtype).eval()
    layout.by_input(model)
    return ModelArtifact(folder, model, tokenizer, card, read_policies(folder))


def read_card(folder: Path) -> Card:
    """exitkit.yaml of a folder."""
    if not folder.exists():
        raise UsageError(f"there is no folder {folder}. Give the folder that 'exitkit train --output' made.")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder. Give the folder that 'exitkit train --output' made.")
    file = folder / CARD
    if not file.exists():
        partial = folder.name.endswith(".partial")
        why = (
            "training was not finished; run it again with --resume"
            if partial
            else f"it has no {CARD}; give a folder that exitkit train or distill made"
        )
        raise UsageError(f"{folder} is not an exitkit model: {why}.")
    loaded = read_yaml(file)
    if loaded.get("format") != FORMAT:
        raise ExitkitError(f"{file} has format {loaded.get('format')!r}; this exitkit reads format {FORMAT}.")
    try:
        card = Card(**{key: value for key, value in loaded.items() if key != "format"})
        if "columns" not in card.data or "hash" not in card.calibration:
            raise TypeError("it ends too early")
        return Card(**{**vars(card), "labels": tuple(card.labels), "exits": tuple(card.exits)})
    except TypeError as error:
        raise ExitkitError(f"{file} is damaged: {error}.") from None


def read_policies(folder: Path) -> dict[str, Any]:
    """policy.yaml of a folder; empty when nothing was calibrated."""
    file = folder / POLICY
    if not file.exists():
        return {}
    loaded = read_yaml(file)
    policies = loaded.get("policies")
    whole = isinstance(policies, dict) and all(
        isinstance(entry, dict) and entry.keys() >= ENTRY and entry["calibration"] and "hash" in entry["calibration"]
        for entry in policies.values()
    )
    if not isinstance(policies, dict) or not whole or loaded.get("default") not in policies:
        raise ExitkitError(f"{file} is damaged; remove it and calibrate again.")
    return loaded


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds a finished model of ours."""
    return (folder / CARD).exists()


def own_files(folder: Path) -> set[str]:
    """Files of an artifact that are exitkit's, relative to it. A model card without our mark is somebody's own."""
    found = {file.name for file in folder.iterdir() if KNOWN.fullmatch(file.name) and file.is_file()}
    card = folder / README
    if card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace"):
        found.add(README)
    return found


def publish(partial: Path, folder: Path, overwrite: bool) -> None:
    """Give a complete folder its final name, which must be held.

    With `overwrite` an older model of that name is removed once the new one stands. Files in it that are not exitkit's
    are carried over: to refuse them would cost a training, and they are often notes about the model.

    Raises ExitkitError: something that may not be replaced has that name by now, or it cannot be given. The message
    says where the model is.
    """
    complete = f"The model is complete in {partial}."
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not is_artifact(folder)):
            raise ExitkitError(f"{folder} holds files that were not there before. {complete}")
        if is_artifact(folder) and not overwrite:
            raise ExitkitError(f"{folder} holds a model that was not there before. {complete} Rename one of the two.")
        if README in outputs.foreign(folder, own_files(folder)):
            (partial / README).unlink(missing_ok=True)  # as after calibrate: somebody's own card stays
    try:
        outputs.replace_folder(partial, folder, own_files)
    except OSError as error:
        raise ExitkitError(f"cannot write '{folder}': {outputs.why(error)}. {complete}") from error
    except ExitkitError as error:
        raise ExitkitError(f"{error} {complete}") from None


def _load_exits(file: Path, model: ExitModel, registry: Registry, built_with: Mapping[str, dict[str, Any]]) -> None:
    if not file.exists():
        raise ExitkitError(f"{file} is missing: the folder holds a plain model without its exits.")
    with _told(file):
        saved = load_file(file)
    heads = {name.removeprefix("heads."): value for name, value in saved.items() if name.startswith("heads.")}
    probes: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in saved.items():
        if name.startswith("probe/"):
            _, policy, parameter = name.split("/", 2)
            probes.setdefault(policy, {})[parameter] = value
    try:
        model.heads.load_state_dict(heads)
        for policy, weights in probes.items():
            probe = registry.policy(policy).probe(model.shape, **built_with.get(policy, {}))
            if probe is None:
                raise ExitkitError(f"{file} holds a probe of policy '{policy}', and this '{policy}' has none.")
            probe.load_state_dict(weights)
            model.probes[policy] = probe
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExitkitError(f"{file} does not fit {CARD}: {' '.join(str(error).split())}") from None
    bad = [name for name, value in saved.items() if not torch.isfinite(value).all()]
    if bad:
        raise ExitkitError(f"{file} holds NaN or infinite weights ({bad[0]}).")


def read_yaml(file: Path) -> dict[str, Any]:
    """A file of ours that holds a mapping. Raises ExitkitError: it is damaged."""
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # a date like 2024-13-45 is a plain ValueError
        raise ExitkitError(f"{file} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ExitkitError(f"{file} is damaged: it does not hold a mapping.")
    return loaded


TORCH_WRITERS = ("inline_container", "PytorchStreamWriter", "iostream error")
"""What torch's own errors about files that cannot be written have in them."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what libraries raise where a file cannot be written, as on a full disk, into an ExitkitError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(writer in str(error) for writer in TORCH_WRITERS):
            raise
        raise ExitkitError(
            f"{folder}: cannot write there: {' '.join(str(error).split())}. Free some space, or see who may write, and "
            "go on with --resume."
        ) from error


@contextmanager
def _told(what: Path) -> Iterator[None]:
    """Turn what libraries raise about files into a message that names ours."""
    try:
        yield
    except ExitkitError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise ExitkitError(f"{what} cannot be read: {' '.join(str(error).split())}") from error
