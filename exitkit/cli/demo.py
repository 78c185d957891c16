"""`exitkit demo`."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from exitkit.cli import benchmark, calibrate, train
from exitkit.cli.command import command
from exitkit.config import DemoConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "demo",
        DemoConfig,
        run,
        show,
        help="The whole journey on built-in generated data: train, calibrate, benchmark. No network, a few minutes.",
    )


def run(settings: DemoConfig) -> dict[str, Any]:
    """Train, calibrate and benchmark a small encoder on generated reviews."""
    from exitkit.demo import demo

    return demo(settings)


def show(result: dict[str, Any], console: Console) -> None:
    """Each step as its own command shows it."""
    console.rule("train")
    train.show(result["train"], console)
    console.rule("calibrate")
    calibrate.show(result["calibrate"], console)
    console.rule("benchmark")
    benchmark.show(result["benchmark"], console)
    console.print(
        f"\nThe data are generated and the model is tiny. Ask it something:\n"
        f"  echo 'the plot was not good' | exitkit predict {result['model']}",
        highlight=False,
    )
