"""`exitkit plugins`, `families`, `recipes` and `methods`: what is installed, and where it comes from."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from exitkit.cli.command import reporting, write_json
from exitkit.process import stdout

PLUGINS = """Exit policies and other plugins that are installed; broken ones with the reason.

In the environment of any command, EXITKIT_LOAD_PLUGINS=NAMES (of plugins or distributions, comma by comma) leaves out
all others but exitkit's own; empty, it leaves those alone.
"""
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("plugins", help=PLUGINS)(plugins)
    app.command("families", help="Encoder families that can get exits.")(families)
    app.command("recipes", help="Ways to train exits.")(recipes)
    app.command("methods", help="Ways to distil.")(methods)


def plugins(json: Json = False, debug: Debug = False) -> None:
    """One row per plugin."""
    with reporting(json, debug) as console:
        from exitkit.plugins import installed

        registry = installed()
        rows: list[dict[str, Any]] = [
            {
                "name": plugin.name,
                "module": plugin.module,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "offers": plugin.offers,
                "error": plugin.error,
                "notes": plugin.notes,
            }
            for plugin in registry.plugins
        ]
        if json:
            write_json({"plugins": rows, "clashes": registry.clashes(), "notes": registry.notes})
            return
        table = Table("plugin", "distribution", "offers")
        for row in rows:
            offers = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in row["offers"].items())
            if row["error"]:
                offers = f"[red]broken: {escape(row['error'])}[/]"
            said = "\n".join([offers, *(f"[yellow]{escape(note)}[/]" for note in row["notes"])])
            table.add_row(row["name"], f"{row['distribution']} {row['version']}", said)
        with stdout.naming():
            console.print(table)
            for clash in registry.clashes():
                console.print(f"[red]{escape(clash)}[/]", highlight=False)
            for note in registry.notes:
                console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)


def families(json: Json = False, debug: Debug = False) -> None:
    """One row per model type."""
    _list(
        "families",
        "model type",
        json,
        debug,
        lambda encoder: {
            "how": "native" if encoder.native else "padded adapter",
            "sentences_exit": True,
            "layers_skip": True,
            "words_can_halt": encoder.words_halt,
            "students_cut": encoder.cuts,
        },
    )


def recipes(json: Json = False, debug: Debug = False) -> None:
    """One row per recipe."""
    _list("recipes", "recipe", json, debug, _recipe)


def methods(json: Json = False, debug: Debug = False) -> None:
    """One row per distillation method."""
    _list("methods", "method", json, debug, _recipe)


def _recipe(recipe: type) -> dict[str, str]:
    """The first sentence of its docstring, and its options with their defaults."""
    options = ", ".join(f"{field.name} = {field.default}" for field in dataclasses.fields(recipe))
    return {"about": (inspect.getdoc(recipe) or "").split("\n\n")[0].replace("\n", " "), "options": options}


def _list(key: str, kind: str, json: bool, debug: bool, describe: Any) -> None:
    with reporting(json, debug) as console:
        from exitkit.plugins import installed

        registry = installed()
        rows = []
        for name in registry.names(kind):
            offer = registry.offer(kind, name)
            origin = f"{offer.plugin.distribution} {offer.plugin.version}"
            rows.append({"name": name, "origin": origin, **describe(offer.thing)})
        if json:
            write_json({key: rows})
            return
        with stdout.naming():
            show(rows, console)


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """A table with a column per key."""
    table = Table(*(key.replace("_", " ") for key in (rows[0] if rows else ["name"])))
    for row in rows:
        table.add_row(*({True: "yes", False: "no"}.get(value, str(value)) for value in row.values()))
    console.print(table)
