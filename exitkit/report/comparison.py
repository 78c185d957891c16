"""A comparison as tables and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from exitkit.process.outputs import write_text


def table(result: Mapping[str, Any]) -> Table:
    """Score at each target, a part per recipe and a row per policy; narrow enough for 80 columns and four targets."""
    targets = list(dict.fromkeys(row["target"] for row in result["table"]))
    made = Table(box=SIMPLE, title=_title(result), title_justify="left", padding=(0, 1, 0, 0), show_edge=False)
    made.add_column("policy", no_wrap=True)
    for target in targets:
        made.add_column(f"{target:g}x", justify="right", no_wrap=True)
    made.add_column("area", justify="right", no_wrap=True)
    before = None
    for recipe, policy, cells, area in _rows(result, targets):
        if recipe != before:
            made.add_section()
            made.add_row(f"[bold]{recipe}[/]")
        before = recipe
        made.add_row(policy, *(cell.replace(" (", "\n(") for cell in cells), area)
    return made


def markdown(result: Mapping[str, Any]) -> str:
    """The same in Markdown, with exits and what the words mean."""
    targets = list(dict.fromkeys(row["target"] for row in result["table"]))
    lines = ["# exitkit compare", "", _title(result), ""]
    lines += ["| recipe | policy |" + "".join(f" {target:g}x |" for target in targets) + " area |"]
    lines += ["|---|---|" + "--:|" * (len(targets) + 1)]
    for recipe, policy, cells, area in _rows(result, targets):
        lines.append(f"| {recipe} | {policy} | " + " | ".join([*cells, area]) + " |")
    exits = max(len(one["scores"]) for one in result["exits"])
    lines += ["", "Score of each exit alone:", "", "| recipe |" + "".join(f" {n} |" for n in range(1, exits + 1))]
    lines += ["|---|" + "--:|" * exits]
    for one in result["exits"]:
        lines.append(f"| {one['recipe']} | " + " | ".join(_plus(score, "score") for score in one["scores"]) + " |")
    lines += [
        "",
        "Settings are chosen on calibration rows and scored on rows that chose nothing; ± is the standard deviation "
        "over seeds. A speed-up behind a score is the one reached where it is more than 5 % off the target. area: mean "
        "score over the logarithm of the speed-up, from 1x to the largest target, each time of the slowest setting "
        "that is so fast; what no setting reaches counts with the score of exit 1.",
        "",
    ]
    if result["skipped"]:
        lines += [*(f"- {pair}: left out, {why}" for pair, why in result["skipped"].items()), ""]
    return "\n".join(lines)


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """compare.json, compare.md and curves.png."""
    from exitkit.report import pictures

    pictures.save(pictures.curves(result["curves"], result["currency"], result["metric"]), folder / "curves.png")
    write_text(folder / "compare.md", markdown(result))
    write_text(folder / "compare.json", json.dumps(result, indent=2) + "\n")


def _title(result: Mapping[str, Any]) -> str:
    return f"{result['metric']} on {result['rows']} rows, {result['seeds']} seeds, speed-up in {result['currency']}"


def _rows(result: Mapping[str, Any], targets: list[float]) -> list[tuple[str, str, list[str], str]]:
    found = []
    for area in result["areas"]:
        mine = {
            row["target"]: row
            for row in result["table"]
            if (row["recipe"], row["policy"]) == (area["recipe"], area["policy"])
        }
        cells = [_cell(mine[target]) if target in mine else "" for target in targets]
        found.append((area["recipe"], area["policy"], cells, _plus(area, "area")))
    return found


def _cell(row: Mapping[str, Any]) -> str:
    off = abs(row["speedup"] / row["target"] - 1) > 0.05
    return _plus(row, "score") + (f" ({row['speedup']:.2f}x)" if off else "")


def _plus(row: Mapping[str, Any], name: str) -> str:
    return f"{100 * row[name]:.1f} ± {100 * row[f'{name}_std']:.1f}"
