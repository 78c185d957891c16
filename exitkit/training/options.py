"""What stands beside a name in a configuration: options of a recipe, and epochs of its phases."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from exitkit.configuration.config import Choice
from exitkit.engine.model import ExitModel
from exitkit.errors import UsageError, one_of
from exitkit.recipe import Phase, Recipe

log = logging.getLogger("exitkit")

R = TypeVar("R", bound=Recipe)


def build(what: str, choice: Choice, find: Callable[[str], type[R]]) -> tuple[str, R, dict[str, float]]:
    """The recipe of a configuration with its options, and epochs by phase where they are given.

    `recipe.OPTION` is an option, `recipe.PHASE.epochs` the epochs of a phase; `what` is "recipe" or what else it is
    called. Raises UsageError for an unknown name or option; the names of phases are checked when they are known.
    """
    if len(choice.name) != 1:
        raise UsageError(f"--{what}: exactly one {what} is needed, not {len(choice.name)}.")
    name = choice.name[0]
    recipe = find(name)
    known = {field.name: field for field in dataclasses.fields(recipe)}  # type: ignore[arg-type]
    options, epochs = {}, {}
    for option, value in choice.options.items():
        if option not in known and isinstance(value, Mapping) and set(value) == {"epochs"}:
            epochs[option] = float(_typed(f"{what}.{option}.epochs", value["epochs"], 1.0))
            if not 0 < epochs[option] < np.inf:
                raise UsageError(f"{what}.{option}.epochs: {value['epochs']} is not a number above 0.")
            continue
        if option not in known:
            raise UsageError(one_of(f"option of {what} '{name}'", option, known))
        options[option] = _typed(f"{what}.{option}", value, known[option].default)
    return name, recipe(**options), epochs


def phases_of(
    what: str, name: str, recipe: Recipe, model: ExitModel, epochs: float, of_phases: Mapping[str, float], tuned: bool
) -> list[Phase]:
    """The phases to run, without fine-tuning where the model comes fine-tuned (`tuned`)."""
    phases = list(recipe.phases(model, epochs))
    names = [phase.name for phase in phases]
    for given in of_phases:
        if given not in names:
            raise UsageError(one_of(f"option or phase of {what} '{name}'", given, names))
    phases = [replace(phase, epochs=of_phases.get(phase.name, phase.epochs)) for phase in phases]
    left = [phase for phase in phases if not (phase.fine_tunes and tuned)]
    for phase in phases:
        if phase not in left:
            log.warning("the model is a fine-tuned classifier of these labels: phase '%s' is left out", phase.name)
    return left


def _typed(where: str, value: Any, default: Any) -> Any:
    """An option's value as the type of its default; YAML reads 5e-5 as a string."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise UsageError(f"{where}: {value!r} is not true or false.")
    if isinstance(default, int | float):
        try:
            return type(default)(value)
        except (TypeError, ValueError):
            raise UsageError(f"{where}: {value!r} is not a number.") from None
    return value
