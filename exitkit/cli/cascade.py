"""`exitkit cascade`."""

from __future__ import annotations

from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from exitkit.cli.command import command
from exitkit.configuration.config import CascadeConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "cascade",
        CascadeConfig,
        run,
        show,
        needs=("artifacts", "output"),
        then="exitkit calibrate {output} --target-speedup 2x",
        help="Put complete models in a row: the larger ones are asked only where the smaller ones are not sure.\n\n"
        "  exitkit cascade runs/small runs/large --output runs/cascade",
    )


def run(settings: CascadeConfig) -> dict[str, Any]:
    """Write the cascade's folder."""
    from exitkit.artifacts.cascade import cascade

    return cascade(settings=settings)


def show(result: dict[str, Any], console: Console) -> None:
    """A row per model; what the last one's row costs is what a row costs that nobody answers early."""
    table = Table(box=SIMPLE)
    for column in ("exit", "model", "layers", "M multiply-adds", "speed-up of a row answered here"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for one in result["models"]:
        cells = (one["exit"], one["artifact"], one["layers"], f"{one['flops'] / 1e6:.4g}", f"{one['speedup']:.2f}x")
        table.add_row(*map(str, cells))
    console.print(table)
