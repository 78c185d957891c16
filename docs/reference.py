"""Writes docs/commands.md from the program: `python docs/reference.py`. A test fails when the file is out of date."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from exitkit.configuration import config, parsing
from exitkit.configuration.config import Choice

FILE = Path(__file__).with_name("commands.md")
COMMANDS = {
    "demo": (config.DemoConfig, "The whole journey on built-in generated data."),
    "train": (config.TrainConfig, "Put exits into an encoder and train both."),
    "distill": (
        config.DistillConfig,
        "Make a smaller student of one or more teachers, with exits of its own.",
    ),
    "cascade": (
        config.CascadeConfig,
        "Put complete models in a row: the larger ones are asked only where the smaller ones are not sure.",
    ),
    "calibrate": (
        config.CalibrateConfig,
        "Find the setting of a policy that reaches a speed-up, confirmed by running.",
    ),
    "benchmark": (config.BenchmarkConfig, "Score and time settings on rows that chose nothing."),
    "predict": (config.PredictConfig, "Answer new texts."),
    "compare": (config.CompareConfig, "Recipes and policies against each other, over several seeds."),
}
LISTINGS = {
    "inspect DIR": "What a trained model is: exits, scores, calibrated policies, where its rows came from.",
    "plugins": "What is installed, with its origin; broken plugins with the reason. `EXITKIT_LOAD_PLUGINS=NAMES` "
    "(of plugins or distributions, comma by comma) in the environment of any command leaves out all others but "
    "exitkit's own.",
    "families": "Encoder families, and what works in each.",
    "recipes": "Ways to train exits, with their options.",
    "methods": "Ways to distil, with their options.",
}
NEW_PLUGIN = """## exitkit new-plugin NAME --kind policy|recipe|family|distiller

A package for a plugin of your own, complete with a test: an example under another name, see [plugins](plugins.md).
NAME is what it registers: letters of ASCII, digits, `-` and `_`, a letter first; of a family, the `model_type` of its
config. `--output DIR`, `-o`: the folder, new or empty (exitkit-NAME). A name that an installed plugin has registered is
refused. `--json` gives `folder`, `kind`, `name` and `files`. There is no `--config` and no `--set`.
"""
HEAD = """# Commands

Written by `python docs/reference.py` from the program; a test keeps it true.

Every command below takes `--config FILE.yaml` (any setting below, by its name in the first column), `--set
dotted.key=value` (over the flags, which stand over the file), `--json` (one object on stdout, everything else on
stderr; a failure prints `{"error": ...}`) and `--debug` (tracebacks). Exit code 0: done. 1: failed, with a message.
2: bad usage. 130: interrupted.

In files, `policy`, `recipe` and `method` are mappings with a `name`; flags are short for it. `policy.KNOB` sets that
knob of every policy of the run that has it, `policy.NAME.KNOB` of one; `off` is a value. `recipe.OPTION` is an option
of the recipe, `recipe.PHASE.epochs` the epochs of one of its phases; likewise `method.OPTION` and
`method.PHASE.epochs`. `training.FIELD` is any field of
`transformers.TrainingArguments`.

Outputs: a command locks what it writes, and a second one that would write there is refused and told who holds it (the
lock ends with its process; where files cannot be locked, as on Windows, a warning says so). What stands under a final
name is whole, the old one or the new one. Files that are not exitkit's stay: `--overwrite` carries those in a model's
folder over into the new one, `benchmark` writes into a new folder, an empty one or a report of its own, whose files
`report.json` names, and `OUTPUT.partial` of train, or `FILE.partial` of predict, is refused if no earlier run has
left it (`.FILE.exitkit-lock` beside it says which one is). An `--output` that is a link is followed; one that leads
nowhere is refused.
"""


def text() -> str:
    """The whole reference."""
    parts = [HEAD]
    for name, (model, about) in COMMANDS.items():
        parts.append(f"## exitkit {name}\n\n{about}\n")
        parts.append("| setting | values | default | |\n|---|---|---|---|")
        parts += [_row(key, field) for key, field in parsing.ordered(model).items()]
        parts.append("")
    parts += [NEW_PLUGIN, "## Listings\n"]
    parts += [f"- `exitkit {name}`: {about}" for name, about in LISTINGS.items()]
    return "\n".join(parts) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    extra: Any = field.json_schema_extra
    option = parsing.option(name) if extra["cli"] else "file or --set"
    short = f", -{extra['short'].lstrip('-')}" if extra["short"] else ""
    about = (field.description or "").replace("|", "\\|")
    return f"| `{name}` ({option}{short}) | {_values(field.annotation)} | {_default(field)} | {about} |"


def _values(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        return _values(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_values(one) for one in get_args(kind) if one is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    if origin is list:
        return f"list of {_values(get_args(kind)[0])}"
    names = {int: "integer", float: "number", str: "text", bool: "switch", Path: "path", Choice: "name", Any: "data"}
    return names.get(kind, "mapping")


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined and field.default_factory is not None:
        value = field.default_factory()  # type: ignore[call-arg]
    if isinstance(value, Choice):
        value = ", ".join(value.name)
    if value in (None, False, "", [], {}):
        return ""
    return f"`{', '.join(map(str, value)) if isinstance(value, list) else value}`"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
