"""`exitkit calibrate`."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from exitkit.cli.command import command
from exitkit.configuration.config import CalibrateConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "calibrate",
        CalibrateConfig,
        run,
        show,
        needs=("artifact",),
        help="Find the setting of an exit policy that reaches a speed-up, and confirm it by running.\n\n"
        "  exitkit calibrate runs/reviews --target-speedup 3x\n\n"
        "  exitkit calibrate runs/reviews --max-drop 0.01 --currency flops",
        succeeded=lambda result: bool(result["feasible"]),
    )


def run(settings: CalibrateConfig) -> dict[str, Any]:
    """Calibrate."""
    from exitkit.calibration.calibrate import calibrate

    return calibrate(settings=settings)


def show(result: dict[str, Any], console: Console) -> None:
    """The chosen setting and what it gives."""
    target = "" if result["target_speedup"] is None else f" for {result['target_speedup']:g}x in {result['currency']}"
    console.print(f"{result['policy']}{target}: {_told(result['settings'])}", highlight=False)
    table = Table(show_header=False, box=None)
    measured = result["measured_speedup"]
    low, high = result["measured_speedup_ci"]["time"]
    table.add_row("speed-up", "  ".join(f"{measured[c]:.2f}x {c}" for c in ("layers", "flops", "time")))
    table.add_row("", f"time: {low:.2f}–{high:.2f} (95 %), batches of {result['batch_size']}")
    table.add_row(
        result["metric"],
        f"{100 * result['score']:.1f} %, full model {100 * result['full_score']:.1f} %, "
        + (f"its last exit behind gates {100 * result['gated_score']:.1f} %, " if "gated_score" in result else "")
        + f"agreement on {100 * result['agreement']:.1f} % of units",
    )
    if "scheme" in result:
        from exitkit.tasks.tags import scheme_told

        table.add_row("tags", scheme_told(result["scheme"]))
    table.add_row("units per exit", "  ".join(map(str, result["exit_histogram"])))
    table.add_row("rows", f"{result['rows']} of {result['split']}")
    if result["limits"]:
        limits = {key: value for key, value in result["limits"].items() if key != "temperatures"}
        if limits:
            table.add_row("limits", ", ".join(f"{key} = {value}" for key, value in limits.items()))
    console.print(table, highlight=False)
    if result["temperature"]:
        console.print(_temperatures(result["temperature"]))
    if "reachable" in result:
        points = ", ".join(
            f"{point['speedup'][result['currency']]:.2f}x ({100 * point['score']:.1f} %)"
            for point in result["reachable"]
        )
        console.print(f"all that {result['policy']} can reach: {points}", highlight=False)
    if result["better"]:
        other = result["better"]
        console.print(
            f"faster with at least this score: {_told(other['settings'])} "
            f"({other['speedup'][result['currency']]:.2f}x, {100 * other['score']:.1f} %)",
            highlight=False,
        )
    if not result["feasible"]:
        verdict = "not certain" if result["undecided"] else "not reached"
        console.print(f"[bold red]{verdict}:[/] {result['advice']} policy.yaml is unchanged.", highlight=False)


def _told(settings: dict[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{key} = {value}" for key, value in settings.items())


def _temperatures(fitted: dict[str, Any]) -> Table:
    """Temperature of every exit, and what it did."""
    table = Table(box=None, title="temperatures, measured on rows that did not fit them", title_justify="left")
    for column in ("exit", "temperature", "neg. log-likelihood", "calibration error"):
        table.add_column(column, justify="right")
    for number, value in enumerate(fitted["values"], start=1):
        moved = [
            f"{fitted[kind]['before'][number - 1]:.3f} → {fitted[kind]['after'][number - 1]:.3f}"
            for kind in ("nll", "ece")
        ]
        table.add_row(str(number), f"{value:.2f}", *moved)
    return table
