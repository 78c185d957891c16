"""`exitkit train`."""

from __future__ import annotations

from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from exitkit.cli.command import command
from exitkit.configuration.config import TrainConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "train",
        TrainConfig,
        run,
        show,
        needs=("model", "output"),
        then="exitkit calibrate {output} --target-speedup 2x",
        help="Put exits into an encoder and train both.\n\n"
        "  exitkit train --model sentence-transformers/all-MiniLM-L6-v2 --data reviews.csv --output runs/reviews",
    )


def run(settings: TrainConfig) -> dict[str, Any]:
    """Train."""
    from exitkit.training.train import train

    return train(settings)


def show(result: dict[str, Any], console: Console) -> None:
    """A row per exit."""
    console.print(f"{result['metric']} on {result['split']}, {result['rows']} rows", highlight=False)
    if "scheme" in result:
        from exitkit.tasks.tags import scheme_told

        console.print(f"tags: {scheme_told(result['scheme'])}", highlight=False)
    table = Table(box=SIMPLE)
    for column in ("exit", "layer", "score"):
        table.add_column(column, justify="right")
    for exit in result["exits"]:
        table.add_row(str(exit["exit"]), str(exit["layer"]), f"{100 * exit['score']:.1f} %")
    console.print(table)
    if "gated_score" in result:
        console.print(
            f"last exit behind gates: {100 * result['gated_score']:.1f} %, which skip "
            f"{100 * result['skip_rate']:.1f} % of the layers; without: {100 * result['ungated_score']:.1f} %",
            highlight=False,
        )
    console.print(
        f"trained in {result['train_seconds']:.0f} s ({result['samples_per_second']:.0f} rows a second)",
        highlight=False,
    )
