"""`exitkit new-plugin`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from exitkit.cli.command import reporting, write_json
from exitkit.process import stdout

HELP = """A package for a plugin of your own, complete with a test: an example under another name.

  exitkit new-plugin my-rule --kind policy
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("new-plugin", help=HELP)(new_plugin)


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it registers; of a family, the model type.")],
    kind: Annotated[str, typer.Option("--kind", metavar="policy|recipe|family|distiller", help="What it brings.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Its folder. [dim]\\[default: exitkit-NAME][/dim]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write the package, and say what to run next."""
    with reporting(json, debug) as console:
        from exitkit import scaffold

        made = scaffold.new_plugin(name, kind, output)
        if json:
            write_json(made)
        else:
            with stdout.naming():
                show(made, console)


def show(made: dict[str, Any], console: Console) -> None:
    """The files, and the lines that install, list and test the package."""
    folder = Path(made["folder"])
    for file in made["files"]:
        console.print(folder / file, highlight=False, markup=False, soft_wrap=True)
    # A folder without a slash would be looked for in a package index.
    place = shlex.quote(str(folder) if len(folder.parts) > 1 else f"./{folder}")
    listing = {"recipe": "recipes", "family": "families", "distiller": "methods"}.get(made["kind"], "plugins")
    console.print("\nnext, to install, list and test it:")
    lines = (f"python -m pip install --editable {place}", f"exitkit {listing}", f"python -m pytest {place}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
