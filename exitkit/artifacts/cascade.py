"""cascade.yaml: the folder of a cascade, which names the folders of its models.

    format: 1
    models: [../small, ../large]     smallest first; relative to the folder, or absolute

policy.yaml lies beside it, as in any other artifact.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from exitkit.artifacts import artifact, manifest, records
from exitkit.artifacts.artifact import Artifact, Card, ModelArtifact
from exitkit.configuration import parsing
from exitkit.configuration.config import CascadeConfig
from exitkit.data import fingerprints
from exitkit.data.batches import Reader
from exitkit.engine.cascade import Cascade
from exitkit.engine.cost import prices
from exitkit.engine.model import ExitModel
from exitkit.engine.schedule import schedule
from exitkit.errors import UsageError
from exitkit.plugins import Registry, installed
from exitkit.process import outputs
from exitkit.tasks import Tagging

log = logging.getLogger("exitkit")

FILE = "cascade.yaml"
FORMAT = 1
TOKENS = 64  # of the row that models are compared on


def open_artifact(
    folder: Path,
    registry: Registry,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> Artifact:
    """What a command names: the folder of a model, or of a cascade; in evaluation mode. All else as of `read`."""
    return (read if is_cascade(folder) else artifact.read)(folder, registry, device, dtype, verify)


def is_cascade(folder: Path) -> bool:
    """Whether a folder holds a cascade."""
    return (folder / FILE).exists()


def read(
    folder: Path,
    registry: Registry,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> Artifact:
    """Load a cascade with all of its models; `verify` as for one, see `artifact.read`.

    Raises:
        UsageError: its models do not fit together, or one of them is not there.
        ExitkitError: a file is damaged; the message names it.
    """
    if artifact.is_artifact(folder):
        raise UsageError(f"{folder} holds both a model and {FILE}. Give the cascade a folder of its own.")
    whole = joined(folder, models_of(folder), registry, device, dtype, verify)
    policies = artifact.read_policies(folder)
    for name, entry in policies.get("policies", {}).items():
        if tuple(entry.get("models", ())) != whole.content:
            log.warning("models of %s have changed since policy '%s' was calibrated; calibrate it again", folder, name)
    return replace(whole, policies=policies)


def joined(
    folder: Path,
    places: Sequence[Path],
    registry: Registry,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> Artifact:
    """The cascade of the models in some folders. Raises as `read`."""
    cards = [_card(folder, place) for place in places]
    for place, card in zip(places[:-1], cards[:-1], strict=True):
        _same_question(folder, (place, card), (places[-1], cards[-1]))
    found = [artifact.read(place, registry, device, dtype, verify) for place in places]
    _rising(folder, found)
    fixed = registry.policy("fixed")
    full = found[-1]
    alike = all(card.calibration["hash"] == full.card.calibration["hash"] for card in cards)
    return Artifact(
        folder,
        Cascade(
            [one.model for one in found],
            [schedule("fixed", fixed, {"exit": one.model.shape.exits}, one.model.shape) for one in found],
        ).eval(),
        full.tokenizer,
        replace(full.card, calibration=full.card.calibration if alike else {}),
        {},
        _own_ways(found),
        tuple(_digest(place) for place in places),
    )


def models_of(folder: Path) -> list[Path]:
    """The folders that cascade.yaml names, smallest first. Raises ExitkitError or UsageError: it cannot be used."""
    return [folder / name for name in names_of(folder)]  # an absolute name stands for itself


def names_of(folder: Path) -> list[str]:
    """The models of a cascade as cascade.yaml names them. Raises as `models_of`."""
    file = folder / FILE
    loaded = records.read_yaml(file, FORMAT)
    if unknown := sorted(map(str, loaded.keys() - {"format", "models"})):
        raise UsageError(f"{file}: '{unknown[0]}' is not known; write 'format' and 'models'.")
    names = loaded.get("models")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"{file}: 'models' must be a list of folders, such as [../small, ../large], not {names!r}.")
    if len(names) < 2:
        raise UsageError(f"{file} names {len(names)} of the two or more models that a cascade needs. Add a larger one.")
    return names


def lead_elsewhere(folder: Path) -> dict[str, str]:
    """Names in cascade.yaml that lead, perhaps by links, neither into the folder nor beside it, and where they lead."""
    around = folder.resolve().parent
    places = {name: (folder / name).resolve() for name in names_of(folder)}
    return {name: str(place) for name, place in places.items() if not place.is_relative_to(around)}


def learned_texts(folder: Path) -> fingerprints.Fingerprints:
    """Of the texts that a model, or all models of a cascade, have learned from. Raises as `fingerprints.read`."""
    places = models_of(folder) if is_cascade(folder) else [folder]
    return fingerprints.joined(map(fingerprints.read, places))


def write(folder: Path, models: Sequence[str | Path]) -> None:
    """Write cascade.yaml into an existing folder. Names that are not absolute are read from the working folder."""
    names = [str(name) if Path(name).is_absolute() else os.path.relpath(name, folder) for name in models]
    plain = {"format": FORMAT, "models": names}
    outputs.write_text(folder / FILE, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def cascade(*models: str | Path, settings: CascadeConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Write the folder of a cascade, once its models are known to fit together.

    Args:
        models: folders of trained models, smallest first; or give them in the settings.
        settings: the configuration, or its fields by name: `cascade("runs/small", "runs/large", output="runs/both")`.

    Returns:
        The command's JSON: `artifact`, `task`, `labels` and `models`, of each its `exit`, `artifact`, `layers`, the
        `flops` of a row of 64 tokens, and the speed-up of a row that it answers (`speedup`), in flops.

    Raises:
        UsageError: the models do not fit together, or the folder may not be written to.
    """
    if settings is None:
        given = {"artifacts": [Path(model) for model in models]} if models else {}
        settings = parsing.parse(CascadeConfig, {**fields, **given})
    parsing.require(settings, "artifacts", "output")
    assert settings.output is not None
    folder = outputs.target(settings.output)
    with outputs.held(folder, "cascade"):
        _check_output(folder, settings.overwrite)
        if len(settings.artifacts) < 2:
            raise UsageError("a cascade needs two or more models, smallest first. Name another one.")
        model = joined(folder, settings.artifacts, installed())
        with outputs.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, settings.artifacts)
            # What was calibrated is of other models. A run killed here leaves it, and `read` warns of it.
            (folder / artifact.POLICY).unlink(missing_ok=True)
    return {
        "artifact": str(folder),
        "task": model.card.task,
        "labels": list(model.card.labels),
        "models": _told(model, settings.artifacts),
    }


def _check_output(folder: Path, overwrite: bool) -> None:
    """Raise UsageError for a folder that a cascade may not be written to."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not is_cascade(folder):
        raise UsageError(f"--output {folder} holds files that are not a cascade; name another folder.")
    if is_cascade(folder) and not overwrite:
        raise UsageError(f"--output {folder} holds a cascade already. Name another folder, or add --overwrite.")


def _told(model: Artifact, places: Sequence[Path]) -> list[dict[str, Any]]:
    """The models, and what a row costs that each of them answers."""
    models = model.model.models
    each = [flops_of_row(one) for one in models]
    return [
        {
            "exit": number,
            "artifact": str(place),
            "layers": one.shape.layers,
            "flops": cost,
            "speedup": each[-1] / sum(each[:number]),
        }
        for number, (place, one, cost) in enumerate(zip(places, models, each, strict=True), start=1)
    ]


def flops_of_row(model: ExitModel) -> int:
    """Multiply-adds of a row of 64 tokens at full depth."""
    price = prices(model)
    layers = sum((one.key + one.query) * TOKENS + one.pair * TOKENS**2 for one in price.layers)
    return layers + price.heads[-1]


def _digest(place: Path) -> str:
    """16 hex digits over what a model held when it was saved, its weights included: one training, one digest.

    Of models that were saved without a manifest, over what training wrote down, its scores and times included.
    """
    sealed = manifest.digest(place)
    if sealed is not None:
        return sealed[:16]
    digest = hashlib.sha256()
    for name in (artifact.CARD, artifact.METRICS):
        if (place / name).exists():
            digest.update((place / name).read_bytes())
    return digest.hexdigest()[:16]


def _card(folder: Path, place: Path) -> Card:
    """exitkit.yaml of a model that a cascade names."""
    if is_cascade(place):
        raise UsageError(f"{folder}: {place} is a cascade itself. Name its models instead.")
    try:
        card = artifact.read_card(place)
    except UsageError as error:
        raise UsageError(f"{folder} names a model that cannot be used: {error}") from None
    if card.task == Tagging.kind:
        raise UsageError(
            f"{folder}: {place} is a tagger. A cascade answers whole texts: its models may cut words otherwise, and a "
            "sentence would go on for the sake of one word. Name classifiers, or let words leave early in one model."
        )
    return card


def _same_question(folder: Path, one: tuple[Path, Card], full: tuple[Path, Card]) -> None:
    """Raise UsageError for models whose answers do not mean the same."""
    (place, card), (last, theirs) = one, full
    if card.task != theirs.task:
        raise UsageError(f"{folder}: {place} is for {card.task}, and {last} for {theirs.task}. {_ALIKE}")
    if sorted(card.labels) != sorted(theirs.labels):
        raise UsageError(
            f"{folder}: {place} has the labels {', '.join(card.labels)}, and {last} has {', '.join(theirs.labels)}. "
            f"{_ALIKE}"
        )
    if card.labels != theirs.labels:
        raise UsageError(
            f"{folder}: {place} has its labels in the order {', '.join(card.labels)}, and {last} in the order "
            f"{', '.join(theirs.labels)}. Train one of them again, from an encoder and on data that gives this order."
        )
    pairs = [bool(each.data["columns"].get("text_pair")) for each in (card, theirs)]
    if pairs[0] != pairs[1]:
        takes = ["pairs of texts" if pair else "single texts" for pair in pairs]
        raise UsageError(f"{folder}: {place} takes {takes[0]}, and {last} takes {takes[1]}. {_ALIKE}")


_ALIKE = "The models of a cascade must answer the same question; train them on the same data."


def _rising(folder: Path, found: Sequence[ModelArtifact]) -> None:
    """Raise UsageError for models that do not cost more and more."""
    costs = [flops_of_row(one.model) for one in found]
    for number in range(1, len(found)):
        if costs[number] <= costs[number - 1]:
            smaller, larger = found[number - 1].folder, found[number].folder
            raise UsageError(
                f"{folder}: {larger} takes {costs[number] / 1e6:.4g} million multiply-adds for a row of {TOKENS} "
                f"tokens, and {smaller}, named before it, {costs[number - 1] / 1e6:.4g}. Name models smallest first, "
                "and none that is not larger than the one before."
            )


def _own_ways(found: Sequence[ModelArtifact]) -> Mapping[str, Reader]:
    """How smaller models read rows that they do not read just as the full one does."""
    full = _way(found[-1])
    ways = enumerate(_way(one) for one in found[:-1])
    return {f"{number}/": found[number].readers[""] for number, way in ways if way is None or way != full}


def _way(one: ModelArtifact) -> tuple[Any, ...] | None:
    """All that token ids depend on; None where a tokenizer does not tell."""
    tokenizer = one.tokenizer
    if not tokenizer.is_fast:
        return None
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # of the last call
        rules.pop(state, None)
    names = tuple(tokenizer.model_input_names)
    return rules, names, tokenizer.pad_token_id, tokenizer.truncation_side, one.card.max_length
