"""`exitkit demo`."""

from __future__ import annotations

from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from exitkit.cli import benchmark, calibrate, train
from exitkit.cli.command import command
from exitkit.configuration.config import DemoConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "demo",
        DemoConfig,
        run,
        show,
        help="The whole journey on built-in generated data: train, calibrate, benchmark. No network, under 3 minutes.",
    )


def run(settings: DemoConfig) -> dict[str, Any]:
    """Train, calibrate and benchmark a small encoder on generated reviews."""
    from exitkit.demo import demo

    return demo(settings)


def show(result: dict[str, Any], console: Console) -> None:
    """Each step as its own command shows it, and what the generated grades tell."""
    console.rule("train: an encoder of 8 layers from scratch, an exit at each")
    train.show(result["train"], console)
    console.rule("calibrate: three policies on rows set aside for it")
    for one in result["calibrate"]:
        calibrate.show(one, console)
        console.print()
    console.rule("benchmark: on the test rows, which chose nothing")
    benchmark.show(result["benchmark"], console)
    console.rule("easy leaves early, hard late")
    console.print(_grades(result["grades"], result["benchmark"]["runs"][0]), highlight=False)
    console.print(
        "The reviews are generated: 'easy' is decided by one word, 'negated' by a word and its negations, 'contrast' "
        "by the order of clauses or by which thing is said to matter. The model is tiny. Ask it something:\n"
        f"  echo 'the plot was not good' | exitkit predict {result['model']}",
        highlight=False,
    )


def _grades(grades: list[dict[str, Any]], run: dict[str, Any]) -> Table:
    """A row per grade: what exits alone score, the share that leaves at each, and the score."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("grade (rows)")
    table.add_column("score of each exit alone, %", justify="right")
    table.add_column(f"leave at each exit with {run['policy']}, %", justify="right")
    table.add_column("score, %", justify="right")
    for one in grades:
        table.add_row(
            f"{one['grade']} ({one['rows']})",
            " ".join(f"{100 * score:.0f}" for score in one["by_exit"]),
            " ".join(f"{100 * rows / one['rows']:.0f}" for rows in one["exits"]),
            f"{100 * one['score']:.1f}",
        )
    return table
