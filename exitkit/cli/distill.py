"""`exitkit distill`."""

from __future__ import annotations

from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from exitkit.cli.command import command
from exitkit.configuration.config import DistillConfig

HELP = """Make a smaller student of one or more teachers (classifiers or taggers), with exits of its own.

The student starts as a piece of the teacher (its most important heads, units and features), learns what the teacher \
says or how its layers work, and then is calibrated, benchmarked and used like any other model. Labels are not needed: \
the teacher's answers teach.

Half of the layers, from answers:

  exitkit distill --teacher runs/reviews --data reviews.csv --output runs/small

Four narrow layers, from states and attention, then from answers:

  exitkit distill --teacher runs/reviews --unlabelled texts.csv --method layers --student-layers 4 \
--student-width 384 --output runs/tiny"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "distill",
        DistillConfig,
        run,
        show,
        help=HELP,
        needs=("teacher", "output"),
        then="exitkit calibrate {output} --target-speedup 2x",
    )


def run(settings: DistillConfig) -> dict[str, Any]:
    """Distil."""
    from exitkit.distillation.distill import distill
    from exitkit.report import search

    report = distill(settings)
    assert settings.output is not None
    search.write(settings.output, report)
    return report


def show(result: dict[str, Any], console: Console) -> None:
    """Teacher, student, and a row per exit."""
    student, teachers = result["student"], result["teachers"]
    size = sum(teacher["parameters"] for teacher in teachers)
    console.print(
        f"student: {student['layers']} layers of width {student['width']}, {student['parameters'] / 1e6:.1f} M "
        f"parameters (teacher: {size / 1e6:.1f} M)",
        highlight=False,
    )
    console.print(f"{result['metric']} on {result['split']}, {result['rows']} rows", highlight=False)
    if "scheme" in result:
        from exitkit.tasks.tags import scheme_told

        console.print(f"tags: {scheme_told(result['scheme'])}", highlight=False)
    table = Table(box=SIMPLE)
    for column in ("exit", "layer", "score", "as the teacher"):
        table.add_column(column, justify="right")
    for exit in result["exits"]:
        agrees = f"{100 * exit['teacher_agreement']:.1f} %"
        table.add_row(str(exit["exit"]), str(exit["layer"]), f"{100 * exit['score']:.1f} %", agrees)
    if "score" in result["teacher"]:
        table.add_row("", "teacher", f"{100 * result['teacher']['score']:.1f} %", "")
    console.print(table)
    console.print(
        f"distilled in {result['train_seconds']:.0f} s ({result['samples_per_second']:.0f} rows a second)",
        highlight=False,
    )
