"""`exitkit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from exitkit.cli.command import reporting, write_json
from exitkit.process import stdout


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("inspect", help="What a trained model is: exits, scores, calibrated policies, where rows came from.")(
        inspect
    )


def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a trained model.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Tell what an artifact is."""
    with reporting(json, debug) as console:
        from exitkit.artifacts.inspection import inspect as look

        found = look(artifact)
        if json:
            write_json(found)
        else:
            with stdout.naming():
                show(found, console)


def show(found: dict[str, Any], console: Console) -> None:
    """Facts, exits or models, and policies."""
    console.print(*(_models(found) if "models" in found else _model(found)), sep="\n\n", highlight=False)
    console.print()
    if not found["policies"]:
        console.print(
            f"not calibrated: 'exitkit calibrate {found['artifact']} --target-speedup 2x' makes it answer early",
            highlight=False,
        )
    for one in found["policies"]:
        console.print(_policy(one), highlight=False)


def _models(found: dict[str, Any]) -> list[Table | str]:
    """What a cascade is for, and a row per model."""
    table = Table("exit", "model", "layers", "width", "parameters", "score", box=None, header_style="bold")
    for number, one in enumerate(found["models"], start=1):
        last = one["exits"][-1]["score"]
        score = "–" if last is None else f"{one['metric']} {100 * last:.1f} on {one['split']}"
        size = f"{one['parameters']['model.safetensors'] / 1e6:.1f} M"
        table.add_row(str(number), one["artifact"], str(one["layers"]), str(one["width"]), size, score)
    labels = f" of {', '.join(found['labels'])}" if found["labels"] else ""
    elsewhere = [f"{name} leads elsewhere: {place}" for name, place in found["elsewhere"].items()]
    return [f"a cascade for {found['task']}{labels}", table, *elsewhere]


def _model(found: dict[str, Any]) -> list[Table | str]:
    """Facts and exits of one model."""
    facts = Table(show_header=False, box=None)
    labels = f": {', '.join(found['labels'])}" if found["labels"] else ""
    sizes = found["parameters"]
    facts.add_row("task", f"{found['task']}{labels}")
    if "scheme" in found:
        from exitkit.tasks.tags import scheme_told

        facts.add_row("tags", scheme_told(found["scheme"]))
    facts.add_row("model", f"{found['family']}, {found['layers']} layers of width {found['width']}")
    facts.add_row(
        "parameters",
        f"{sizes['model.safetensors'] / 1e6:.1f} M, exits {sizes['exits.safetensors'] / 1e6:.1f} M "
        f"({found['pooling']} pooling)",
    )
    recipe = ", ".join(f"{key} {value}" for key, value in found["recipe"].items() if key != "name")
    facts.add_row("recipe", f"{found['recipe']['name']} ({recipe})")
    facts.add_row("trained on", f"{found['data']}, at most {found['max_length']} tokens per row")
    facts.add_row("set aside for calibration", _rows(found["calibration"]))
    facts.add_row("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    facts.add_row("size", f"{sum(found['files'].values()) / 1e6:.1f} MB in {len(found['files'])} files")
    exits = Table("exit", "layer", f"{found['metric']} on {found['split']}", box=None, header_style="bold")
    for one in found["exits"]:
        score = "–" if one["score"] is None else f"{100 * one['score']:.1f}"
        exits.add_row(str(one["exit"]), str(one["layer"]), score)
    return [facts, exits]


def _rows(origin: dict[str, Any]) -> str:
    state = "" if origin["there"] else ", which cannot be read any more or have changed"
    return f"{origin.get('rows', '?')} rows of {origin['split']} of {origin['source']}{state}"


def _policy(one: dict[str, Any]) -> str:
    target = "" if one["target_speedup"] is None else f" for {one['target_speedup']:g}x in {one['currency']}"
    settings = ", ".join(f"{key} = {value}" for key, value in {**one["settings"], **one["limits"]}.items())
    speeds = ", ".join(f"{one['speedup'][currency]:.2f}x {currency}" for currency in ("layers", "flops", "time"))
    return (
        f"{one['policy']}{' (default)' if one['default'] else ''}{target}: {settings}\n"
        f"  {speeds} in batches of {one['batch_size']}, score {100 * one['score']:.1f} on {_rows(one['calibration'])}\n"
        f"  {one['points']} settings stored, up to {one['fastest']:.2f}x in {one['currency']}"
    )
