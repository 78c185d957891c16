"""`exitkit benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from exitkit.cli.command import command
from exitkit.configuration.config import BenchmarkConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "benchmark",
        BenchmarkConfig,
        run,
        show,
        needs=("artifacts",),
        help="Score and time policies on rows that chose nothing, beside fixed exits and plain transformers.\n\n"
        "  exitkit benchmark runs/reviews --policy entropy --policy patience --speedups 1x,2x,3x --batch-size 1,32",
    )


def run(settings: BenchmarkConfig) -> dict[str, Any]:
    """Benchmark, and write the report folder."""
    from exitkit.benchmarking.benchmark import benchmark
    from exitkit.report.folder import opened

    first = settings.artifacts[0] if settings.artifacts[0].name else settings.artifacts[0].resolve()
    folder = settings.output or first.with_name(first.name + "-report")
    with opened(folder) as write:
        result = benchmark(settings=settings)
        write(result)
    return {**result, "report": str(folder)}


def show(result: dict[str, Any], console: Console) -> None:
    """Tables, as in the report."""
    from exitkit.report.tables import tables

    for table in tables(result):
        console.print(table)
    if "scheme" in result["baselines"][0]:
        from exitkit.tasks.tags import scheme_told

        console.print(f"tags: {scheme_told(result['baselines'][0]['scheme'])}", highlight=False)
    console.print(f"report: {Path(result['report'])}", highlight=False)
