"""`exitkit predict`."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from exitkit.cli.command import command
from exitkit.configuration.config import PredictConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "predict",
        PredictConfig,
        run,
        show,
        needs=("artifact",),
        help="Answer texts, each as early as the policy allows. One JSON line per row, in input order.\n\n"
        "  exitkit predict runs/reviews --input new.csv --output answers.jsonl\n\n"
        "  cat lines.txt | exitkit predict runs/reviews > answers.jsonl",
        json_needs="output",
    )


def run(settings: PredictConfig) -> dict[str, Any]:
    """Predict."""
    from exitkit.prediction.predict import predict

    return predict(settings)


def show(result: dict[str, Any], console: Console) -> None:
    """A line on stderr: stdout holds the answers."""
    where = f" to {result['output']}" if result["output"] else ""
    skipped = f", {result['skipped']} lines skipped" if result["skipped"] else ""
    exits = " ".join(map(str, result["exit_histogram"]))
    Console(stderr=True).print(
        f"{result['rows']} rows answered{where} by {result['policy']}{skipped}; units per exit: {exits}",
        highlight=False,
    )
