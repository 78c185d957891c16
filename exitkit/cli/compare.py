"""`exitkit compare`."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from exitkit.cli.command import command
from exitkit.configuration.config import CompareConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "compare",
        CompareConfig,
        run,
        show,
        needs=("model", "data", "output"),
        help="Train recipes, calibrate policies, score them on other rows: one table over several seeds.\n\n"
        "  exitkit compare --model M --data D --recipes joint,rome --policies entropy,patience -o runs/compare\n\n"
        "An interrupted comparison goes on with the same command.",
    )


def run(settings: CompareConfig) -> dict[str, Any]:
    """Compare, and write the tables."""
    from exitkit.comparison.compare import compare
    from exitkit.report.comparison import write

    result = compare(settings)
    assert settings.output is not None
    write(settings.output, result)
    return {**result, "report": str(settings.output)}


def show(result: dict[str, Any], console: Console) -> None:
    """The table."""
    from exitkit.report.comparison import table

    console.print(table(result))
    for pair, why in result["skipped"].items():
        console.print(f"{pair}: left out, {why}", highlight=False)
    console.print(f"tables and curves: {result['report']}", highlight=False)
