"""The folder that a model is saved in. It loads as a plain transformers checkpoint; exits lie beside it.

    config.json, model.safetensors, tokenizer files   the full model
    exits.safetensors                                 exit heads 1..E−1 and probes
    exitkit.yaml                                      what the exits are and what they were trained on
    policy.yaml                                       what calibrate found
    metrics.json                                      score per exit, from train
    manifest.json                                     what the files held when they were saved
    search-POLICY.jsonl                               runs of a search that calibrate has not finished

No file is a pickle, and none is read.
"""

from __future__ import annotations

import json
import logging
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic import dataclasses as checked
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from exitkit.artifacts import manifest, pretrained, records
from exitkit.artifacts.damage import of_tokenizer, told
from exitkit.data import fingerprints
from exitkit.data.batches import Reader, limit
from exitkit.data.lfs import WAY_OUT, is_pointer
from exitkit.engine import layout
from exitkit.engine.heads import Pooling
from exitkit.engine.model import ExitModel, Exits
from exitkit.errors import ExitkitError, UsageError
from exitkit.plugins import Registry
from exitkit.process import outputs
from exitkit.process.outputs import write_text
from exitkit.progress import quiet
from exitkit.tasks import Classification, MultiLabel, Regression, Tagging, Task, task

FORMAT = 1  # of exitkit.yaml
POLICY_FORMAT = 1
CARD = "exitkit.yaml"
WEIGHTS = "model.safetensors"
EXITS = "exits.safetensors"
POLICY = "policy.yaml"
METRICS = "metrics.json"
RUNS = "search-POLICY.jsonl"
README = "README.md"
MARK = "<!-- written by exitkit: remove this line to keep your own changes -->"
"""Stands in a model card that is exitkit's; one without it is somebody's own."""

OWN = {
    *(pretrained.CONFIG, WEIGHTS, EXITS, CARD, POLICY, METRICS, RUNS),
    *(manifest.FILE, fingerprints.FILE, "layer_map.png", "cascade.yaml"),
}
"""Files of an artifact or a cascade, `own_files`."""
PLAIN = {
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model"),
    "modeling_bilstm.py",
}
"""Files that transformers saves with a model, of which some are there."""

log = logging.getLogger("exitkit")


@checked.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Card:
    """exitkit.yaml: what cannot be read from the checkpoint. Values of other types or ranges are refused."""

    task: str
    labels: tuple[str, ...]
    exits: records.Layers  # from 1
    pooling: Pooling
    recipe: dict[str, Any]
    max_length: records.Size
    metric: str
    data: records.OriginOf  # of the training rows
    calibration: records.HashedOf  # the calibration rows
    scale: Annotated[float, Field(gt=0, lt=inf)] = 1.0  # in regression, the standard deviation of the training labels
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
    """Write everything but metrics and policies into an existing folder, and last what was written."""
    exits = {f"heads.{name}": value for name, value in model.heads.state_dict().items()}
    for policy, probe in model.probes.items():
        exits |= {f"probe/{policy}/{name}": value for name, value in probe.state_dict().items()}
    plain = {"format": FORMAT, **vars(card), "labels": list(card.labels), "exits": list(card.exits)}
    with writing(folder):
        (folder / manifest.FILE).unlink(missing_ok=True)  # of an earlier try
        with quiet():
            model.stock.save_pretrained(folder)
            read_by = {Path(file).name for file in tokenizer.save_pretrained(folder) if Path(file).exists()}
        alone = {name: value.clone().contiguous() for name, value in exits.items()}  # some share modules
        save_file(alone, folder / EXITS)
        write_text(folder / CARD, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None))
        code = {file.name for file in folder.glob("modeling_*.py")}  # of own families, for plain transformers
        sealed = {pretrained.CONFIG, WEIGHTS, EXITS, CARD} | read_by
        write_text(folder / manifest.FILE, manifest.text(folder, sealed, code))


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """metrics.json."""
    write_text(folder / METRICS, json.dumps(metrics, indent=2) + "\n")


def write_policies(folder: Path, policies: dict[str, Any]) -> None:
    """policy.yaml."""
    write_text(
        folder / POLICY, yaml.safe_dump({"format": POLICY_FORMAT, **policies}, sort_keys=False, default_flow_style=None)
    )


def read(
    folder: Path,
    registry: Registry,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> ModelArtifact:
    """Load an artifact, in evaluation mode.

    With `verify`, every file that was sealed when it was saved is compared with what it held: a tenth of a second per
    100 MB. A folder without manifest.json loads unchecked, with a note.

    Raises:
        UsageError: the folder is not an artifact.
        ExitkitError: a file is missing or damaged; the message names it.
    """
    card = read_card(folder)
    for name in (pretrained.CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ExitkitError(
                f"{folder / name} is missing. The folder is damaged; train it again or restore the file."
            )
        if is_pointer(folder / name):
            raise ExitkitError(f"{folder / name} is {WAY_OUT}.")
    if verify:
        check(folder)
    config = read_config(folder, card, registry)
    with told(folder, lambda: of_tokenizer(folder)):
        tokenizer = pretrained.load_tokenizer(folder, config, local=True)
        _check_tokenizer(folder, tokenizer, config, card)
    with told(folder, lambda: _of_weights(folder, card, config)):
        stock, report = pretrained.load_stock(folder, card.task, config, local=True)
    if lost := sorted(report["missing_keys"]) or sorted(report["unexpected_keys"]):
        raise ExitkitError(
            f"{folder / WEIGHTS} and {pretrained.CONFIG} do not fit each other: {lost[0]} is "
            f"{'missing' if report['missing_keys'] else 'too many'}. The folder is damaged; train it again or restore "
            "the files."
        )
    model = _with_exits(folder, stock, registry, card)
    with told(folder, lambda: folder / WEIGHTS):
        model = model.to(device=device, dtype=dtype).eval()
        layout.by_input(model)
    return ModelArtifact(folder, model, tokenizer, card, read_policies(folder))


def check(folder: Path) -> None:
    """Compare the files of an artifact with what they held when they were saved; a note where nobody knows.

    Raises ExitkitError: one holds something else; the message names it.
    """
    files = manifest.read(folder)
    if files is None:
        log.info("%s has no %s: whether its files are as they were saved is not checked", folder, manifest.FILE)
        return
    with told(folder, lambda: folder / manifest.FILE):
        manifest.check(folder, files)


def read_config(folder: Path, card: Card, registry: Registry) -> PreTrainedConfig:
    """config.json of an artifact, which must name the labels that its card has.

    Raises:
        UsageError: a family that nobody registered.
        ExitkitError: it is damaged, or the two differ.
    """
    file = folder / pretrained.CONFIG
    with told(folder, lambda: file):
        config = pretrained.load_config(folder, registry, local=True)
        theirs = tuple(config.id2label[number] for number in sorted(config.id2label))
    if card.labels != (() if card.task == Regression.kind else theirs):
        raise ExitkitError(
            f"{folder / CARD} has the labels {reprlib.repr(list(card.labels))}, and {file.name} has "
            f"{reprlib.repr(list(theirs))}. One of the two is damaged; restore it."
        )
    return config


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
    for one in folder.iterdir():
        if one.exists() and not (one.is_file() or one.is_dir()):  # a device or a pipe is read for ever
            raise ExitkitError(f"{one} is no file. The folder is damaged; train it again or restore the file.")
    loaded = records.read_yaml(file, FORMAT)
    try:
        card = Card(**{key: value for key, value in loaded.items() if key != "format"})
    except ValidationError as error:
        raise records.damaged(file, records.told(error)) from None
    if not card.data or not card.calibration:
        raise records.damaged(file, "data and calibration must say which rows they are of")
    try:
        task(card.task, card.labels).metric(card.metric)
    except UsageError as error:
        raise records.damaged(file, str(error)) from None
    return card


def read_policies(folder: Path) -> dict[str, Any]:
    """policy.yaml of a folder; empty when nothing was calibrated."""
    file = folder / POLICY
    if not file.exists():
        return {}
    loaded = records.read_yaml(file, POLICY_FORMAT)
    records.checked(file, records.Policies, loaded)
    return loaded


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a folder; empty when it is not there. Raises ExitkitError: it is damaged."""
    file = folder / METRICS
    if not file.exists():
        return {}
    loaded = records.read_json(file, FORMAT)
    records.checked(file, records.Metrics, loaded)
    return loaded


def own_files(folder: Path) -> set[str]:
    """Names of the files in a folder that exitkit wrote, as far as one can tell: those that its manifest lists, and
    those that have names of ours. Without a manifest also those that transformers saves beside them. A model card
    without our mark is somebody's own.
    """
    try:
        listed = manifest.read(folder)
    except ExitkitError:
        listed = None
    known = OWN | (PLAIN if listed is None else listed.keys())
    found = {file.name for file in folder.iterdir() if file.is_file() and _stem(file.name) in known}
    card = folder / README
    if card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace"):
        found.add(README)
    return found


def _stem(name: str) -> str:
    """The file that an unfinished one was to become; the runs of all searches under one name."""
    return re.sub(r"^search-[A-Za-z0-9_-]+\.jsonl$", RUNS, name.removesuffix(".partial"))


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds a finished model of ours."""
    return (folder / CARD).exists()


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


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, card: Card) -> None:
    """Raise ExitkitError for a tokenizer whose own tokens, which every batch holds, the model does not have.

    Or for a card that asks for more tokens per row than the model takes.
    """
    empty = tokenizer("")
    for name in ("input_ids", "attention_mask"):
        if name not in empty:
            raise ExitkitError(f"{of_tokenizer(folder)} is damaged: its model_input_names lack {name}. Restore it.")
    always = {tokenizer.pad_token_id, *empty["input_ids"]} - {None}
    if always and max(always) >= config.vocab_size:
        raise ExitkitError(
            f"{of_tokenizer(folder)} does not fit {pretrained.CONFIG}: it has a token of number {max(always)}, and the "
            f"model has {config.vocab_size} tokens. One of the two is damaged; restore it."
        )
    try:
        limit(tokenizer, config, card.max_length)
    except UsageError as error:
        raise ExitkitError(f"{folder / CARD} does not fit the model: {error}") from None


def _of_weights(folder: Path, card: Card, config: PreTrainedConfig) -> Path:
    """The file that is at fault where a model cannot be loaded: the weights, or a config of which none can be made."""
    try:
        with torch.device("meta"):
            pretrained.new_stock(card.task, config)
    except Exception:  # whatever a config leads to
        return folder / pretrained.CONFIG
    return folder / WEIGHTS


def _with_exits(folder: Path, stock: PreTrainedModel, registry: Registry, card: Card) -> ExitModel:
    """The model with its exit heads and probes."""
    try:
        model = ExitModel(stock, registry.encoder(stock.config.model_type), card.exits, card.pooling, card.scale)
    except UsageError as error:
        raise ExitkitError(f"{folder / CARD} does not fit {pretrained.CONFIG}: {error}") from None
    if model.exits != card.exits:
        raise ExitkitError(
            f"{folder / CARD} does not fit {pretrained.CONFIG}: its last exit sits at layer {card.exits[-1]} of "
            f"{model.shape.layers}. One of the two is damaged; restore it."
        )
    file = folder / EXITS
    if not file.is_file():
        raise ExitkitError(f"{file} is missing: the folder holds a plain model without its exits.")
    with told(folder, lambda: file):
        saved = load_file(file)
    _load_exits(file, saved, model, registry, card.probes)
    return model


def _load_exits(
    file: Path,
    saved: Mapping[str, torch.Tensor],
    model: ExitModel,
    registry: Registry,
    built_with: Mapping[str, dict[str, Any]],
) -> None:
    """Put saved weights of exit heads and probes into a model. Raises ExitkitError: they do not fit."""
    heads = {name.removeprefix("heads."): value for name, value in saved.items() if name.startswith("heads.")}
    probes: dict[str, dict[str, torch.Tensor]] = {}
    try:
        for name, value in saved.items():
            if name.startswith("probe/"):
                _, policy, parameter = name.split("/", 2)
                probes.setdefault(policy, {})[parameter] = value
        model.heads.load_state_dict(heads)
        for policy, weights in probes.items():
            probe = registry.policy(policy).probe(model.shape, **built_with.get(policy, {}))
            if probe is None:
                raise ExitkitError(f"{file} holds a probe of policy '{policy}', and this '{policy}' has none.")
            probe.load_state_dict(weights)
            model.probes[policy] = probe
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ExitkitError(f"{file} does not fit {CARD}: {' '.join(str(error).split())}") from None
    bad = [name for name, value in saved.items() if not torch.isfinite(value).all()]
    if bad:
        raise ExitkitError(f"{file} holds NaN or infinite weights ({bad[0]}).")


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
