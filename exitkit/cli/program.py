"""The program with all its commands."""

from __future__ import annotations

import typer

from exitkit.cli import (
    benchmark,
    calibrate,
    cascade,
    compare,
    demo,
    distill,
    inspect,
    listings,
    new_plugin,
    predict,
    train,
)

app = typer.Typer(
    name="exitkit",
    help="Make transformer encoders answer early, and know what it costs.",
    epilog="Start with 'exitkit demo': the whole journey on built-in data.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (demo, train, distill, cascade, calibrate, benchmark, predict, inspect, compare, listings, new_plugin):
    part.add_to(app)


def version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        from importlib.metadata import version as of

        typer.echo(of("exitkit"))
        raise typer.Exit


@app.callback()
def program(
    version: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Show the version."),
) -> None:
    """Make transformer encoders answer early, and know what it costs."""
