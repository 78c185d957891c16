"""The model card: README.md inside an artifact, in the hub's format, with figures that were measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from exitkit.artifacts import artifact
from exitkit.artifacts.artifact import MARK, README, Card
from exitkit.errors import ExitkitError
from exitkit.process import outputs
from exitkit.tasks.tags import scheme_told

log = logging.getLogger("exitkit")


def write(folder: Path, card: Card, metrics: Mapping[str, Any], policies: Mapping[str, Any]) -> None:
    """Write the card, unless somebody wrote one of their own (a README.md without our mark).

    Args:
        folder: the artifact.
        card: exitkit.yaml.
        metrics: metrics.json.
        policies: policy.yaml; empty before calibrate.
    """
    file = folder / README
    if file.exists() and MARK not in file.read_text(encoding="utf-8", errors="replace"):
        return
    name, code = folder.name.removesuffix(".partial"), _brings_code(folder / "config.json")
    outputs.write_text(file, text(name, card, metrics, policies, code))


def refresh(folder: Path) -> None:
    """Write the card anew from the files of an artifact; a folder without metrics.json keeps what it has."""
    file = folder / artifact.METRICS
    if not file.exists():
        return
    card = artifact.read_card(folder)
    try:
        write(folder, card, artifact.read_metrics(folder), artifact.read_policies(folder))
    except (ExitkitError, KeyError) as error:
        log.warning("%s: the model card is left as it was", error)


def text(
    name: str, card: Card, metrics: Mapping[str, Any], policies: Mapping[str, Any], brings_code: bool = False
) -> str:
    """The card. A model `brings_code` where transformers does not know its family and loads it with code beside it."""
    origins = [str(name) for name in card.recipe.get("teachers", [card.recipe.get("model", "")]) if name]
    source = str(card.data["source"])
    front: dict[str, Any] = {
        "library_name": "exitkit",
        "pipeline_tag": _pipeline(card),
        "tags": ["early-exit", "exitkit", "transformers", card.task],
    }
    if on_hub := [name for name in origins if _on_hub(name)]:
        front["base_model"] = on_hub if len(on_hub) > 1 else on_hub[0]
    if _on_hub(source):
        front["datasets"] = [source.split(":")[0]]
    last = metrics["exits"][-1]
    result = {
        "task": {"type": front["pipeline_tag"]},
        "dataset": {"name": Path(source).name or source, "type": source if _on_hub(source) else "local"},
        "metrics": [
            {"type": metrics["metric"], "value": round(last["score"], 4), "name": f"{metrics['metric']}, last exit"}
        ],
    }
    front["model-index"] = [{"name": name, "results": [result]}]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()
    return "\n".join(
        ["---", head, "---", MARK, "", f"# {name}", "", *_body(name, card, origins, metrics, policies, brings_code), ""]
    )


def _brings_code(config: Path) -> bool:
    try:
        return "auto_map" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _pipeline(card: Card) -> str:
    """The name that transformers and the hub give such a task."""
    return "token-classification" if card.task == "tagging" else "text-classification"


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name.split(":")[0]).exists()


def _made(card: Card, origins: Sequence[str]) -> str:
    """How the model came about, as the end of a sentence."""
    names = " and ".join(f"`{Path(one).name if Path(one).is_absolute() else one}`" for one in origins)
    started = f" from {names}" if names else ""
    if "teachers" in card.recipe:
        return f"distilled by exitkit{started} with method `{card.recipe['name']}`"
    return f"trained by exitkit{started} with recipe `{card.recipe['name']}`"


def _exits(metrics: Mapping[str, Any]) -> list[str]:
    """Scores per exit, beside the teacher's where there was one."""
    taught = "teacher_agreement" in metrics["exits"][0]
    lines = [
        "| exit | layer | score |" + (" as the teacher |" if taught else ""),
        "|--:|--:|--:|" + ("--:|" if taught else ""),
    ]
    for one in metrics["exits"]:
        agrees = f" {100 * one['teacher_agreement']:.1f} |" if taught else ""
        lines.append(f"| {one['exit']} | {one['layer']} | {100 * one['score']:.1f} |{agrees}")
    if "scheme" in metrics:
        lines += ["", f"Tags are {scheme_told(metrics['scheme'])}."]
    if "score" in metrics.get("teacher", {}):
        lines += ["", f"The teacher scores {100 * metrics['teacher']['score']:.1f} on the same rows."]
    return lines


def _body(
    name: str,
    card: Card,
    origins: Sequence[str],
    metrics: Mapping[str, Any],
    policies: Mapping[str, Any],
    brings_code: bool,
) -> list[str]:
    trusted = ", trust_remote_code=True" if brings_code else ""
    labels = f" Labels: {', '.join(card.labels)}." if card.labels else ""
    count = f"{len(card.exits)} exit{'s' if len(card.exits) > 1 else ''}"
    lines = [
        f"An encoder for {card.task} with {count}, {_made(card, origins)}.{labels}",
        "",
        "## Use",
        "",
        "With early exit:",
        "",
        "```python",
        "import exitkit",
        "",
        f'model = exitkit.load("{name}")',
        'model.predict(["a text"], speedup=2)' if policies else 'model.predict(["a text"])',
        "```",
        "",
        "As a plain transformers model, which runs every layer"
        + (" (with the code of its family, which lies in the folder):" if brings_code else ":"),
        "",
        "```python",
        "from transformers import pipeline",
        "",
        f'pipeline("{_pipeline(card)}", "{name}"{trusted})("a text")',
        "```",
        "",
        "## Exits",
        "",
        f"{metrics['metric']} on {metrics['rows']} rows of {metrics['split']}:",
        "",
        *_exits(metrics),
        "",
    ]
    if "gated_score" in metrics:
        lines += [
            f"Skip gates leave out {100 * metrics['skip_rate']:.1f} % of the layers. The last exit scores "
            f"{100 * metrics['gated_score']:.1f} behind them and {100 * metrics['ungated_score']:.1f} without.",
            "",
        ]
    if not policies:
        return lines
    lines += [
        "## Calibrated",
        "",
        "Speed-ups and scores are of the rows that the settings were chosen on, and so flatter a little. Score other "
        "rows with `exitkit benchmark`.",
        "",
        "| policy | target | layers | flops | time | score | rows |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for policy, entry in policies["policies"].items():
        chosen = entry["chosen"]
        target = "–" if chosen["target_speedup"] is None else f"{chosen['target_speedup']:g}x in {entry['currency']}"
        speeds = " | ".join(f"{chosen['speedup'][currency]:.2f}x" for currency in ("layers", "flops", "time"))
        lines.append(
            f"| {policy} | {target} | {speeds} | {100 * chosen['score']:.1f} | {entry['calibration']['rows']} |"
        )
    return [*lines, ""]
