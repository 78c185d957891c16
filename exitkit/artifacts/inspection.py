"""`exitkit inspect`: what an artifact is, from its files alone. Weights are compared with their seal and not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from exitkit.artifacts import artifact
from exitkit.artifacts.cascade import is_cascade, lead_elsewhere, models_of
from exitkit.data.sources import Origin, reread
from exitkit.errors import ExitkitError
from exitkit.plugins import installed
from exitkit.tasks import task
from exitkit.tasks.tags import scheme_of


def inspect(folder: Path) -> dict[str, Any]:
    """What is in an artifact, as plain values; of a cascade the same of each of its `models`, and its policies.

    Raises:
        UsageError: the folder is not an artifact.
        ExitkitError: a file is missing or damaged.
    """
    if is_cascade(folder):
        return _inspect_cascade(folder)
    card = artifact.read_card(folder)
    artifact.check(folder)
    config = artifact.read_config(folder, card, installed())
    metrics = artifact.read_metrics(folder)
    scores = {one["layer"]: one["score"] for one in metrics.get("exits", [])}
    return {
        "artifact": str(folder),
        "task": card.task,
        "labels": list(card.labels),
        "family": config.model_type,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "parameters": {name: _parameters(folder / name) for name in ("model.safetensors", artifact.EXITS)},
        "exits": [
            {"exit": number, "layer": layer, "score": scores.get(layer)} for number, layer in enumerate(card.exits, 1)
        ],
        **({"scheme": scheme_of(card.labels)} if card.task == "tagging" else {}),
        "metric": card.metric,
        "split": metrics.get("split"),
        "pooling": card.pooling,
        "recipe": card.recipe,
        "max_length": card.max_length,
        "data": card.data["source"],
        "calibration": {**_origin(card.calibration), "there": _there(card, card.calibration)},
        "policies": _policies(folder, card),
        "versions": card.versions,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
    }


def _inspect_cascade(folder: Path) -> dict[str, Any]:
    places = models_of(folder)
    full = artifact.read_card(places[-1])
    return {
        "artifact": str(folder),
        "task": full.task,
        "labels": list(full.labels),
        "models": [inspect(place) for place in places],
        "elsewhere": lead_elsewhere(folder),
        "policies": _policies(folder, full),
    }


def _policies(folder: Path, card: artifact.Card) -> list[dict[str, Any]]:
    stored = artifact.read_policies(folder)
    return [_policy(name, entry, card, stored["default"]) for name, entry in stored.get("policies", {}).items()]


def _policy(name: str, entry: dict[str, Any], card: artifact.Card, default: str) -> dict[str, Any]:
    chosen, currency = entry["chosen"], entry["currency"]
    return {
        "policy": name,
        "default": name == default,
        "target_speedup": chosen["target_speedup"],
        "currency": currency,
        "batch_size": entry["batch_size"],
        "settings": chosen["settings"],
        "limits": entry.get("limits", {}),
        "speedup": chosen["speedup"],
        "score": chosen["score"],
        "fastest": max(point["speedup"][currency] for point in entry["frontier"]),
        "points": len(entry["frontier"]),
        "calibration": {**_origin(entry["calibration"]), "there": _there(card, entry["calibration"])},
    }


def _origin(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: plain[key] for key in ("source", "split", "rows", "hash") if key in plain}


def _there(card: artifact.Card, plain: dict[str, Any]) -> bool:
    """Whether the calibration rows can still be read and are the same."""
    try:
        reread(Origin.from_dict(plain), task(card.task, card.labels), plain["hash"])
    except ExitkitError:
        return False
    return True


def _parameters(file: Path) -> int:
    if not file.exists():
        raise ExitkitError(f"{file} is missing.")
    try:
        with safe_open(file, "pt") as weights:
            return sum(_size(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ExitkitError(f"{file} cannot be read: {error}") from None


def _size(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
