"""How flags, YAML files and Python arguments become a command's configuration, and what is said where they do not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from exitkit.configuration.config import Choice
from exitkit.errors import UsageError, one_of

M = TypeVar("M", bound=BaseModel)


def merge(
    model: type[M],
    flags: Mapping[str, Any],
    file: Path | None = None,
    assignments: list[str] | None = None,
) -> M:
    """One configuration from a YAML file, command-line flags over it, and `--set dotted.key=value` over both.

    Raises:
        UsageError: an unknown key (with the closest match) or a value that is not allowed.
    """
    merged = _read_yaml(file) if file is not None else {}
    for key, value in flags.items():
        known = model.model_fields.get(key)
        by_name = known is not None and "Choice" in str(known.annotation)
        if by_name and isinstance(merged.get(key), Mapping):
            merged[key] = {**merged[key], "name": value}
        else:
            merged[key] = value
    for assignment in assignments or []:
        _assign(model, merged, assignment)
    return parse(model, merged)


def parse(model: type[M], values: Mapping[str, Any]) -> M:
    """Check plain values. Raises UsageError with every complaint in it."""
    values = dict(values)
    for key, value in values.items():
        if key not in model.model_fields:
            raise UsageError(one_of("setting", key, model.model_fields))
        usual = model.model_fields[key].default
        if isinstance(usual, Choice) and isinstance(value, Mapping) and not value.get("name"):
            values[key] = {**value, "name": usual.name}  # options without a name are for the default
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(_complaint(one) for one in error.errors())) from None


def ordered(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a command for help and reference: its own ones before those that it shares with others."""
    fields = model.model_fields
    own = {name: fields[name] for name in inspect.get_annotations(model) if name in fields}
    return {**own, **{name: field for name, field in fields.items() if name not in own}}


def require(config: BaseModel, *fields: str) -> None:
    """Options that must have been given one way or another."""
    missing = [name for name in fields if not getattr(config, name)]
    if missing:
        names = ", ".join(option(name) for name in missing)
        raise UsageError(f"missing {names}. Give it on the command line, or in the file of --config.")


def option(field: str) -> str:
    """The command-line spelling of a field; artifacts stand without a flag."""
    return "DIR" if field in ("artifact", "artifacts") else "--" + field.replace("_", "-")


def _complaint(error: Any) -> str:
    where = error["loc"][0] if error["loc"] else ""
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error", "assertion_error") and not where:
        return str(what)
    if error["type"] == "value_error":
        return f"{option(str(where))}: {what}"
    return f"{option(str(where))}: {error['input']!r}: {what[:1].lower()}{what[1:]}"


AS_WRITTEN = (
    *("label_names", "class_weights", "never_early"),
    *("text_column", "pair_column", "label_column", "group_column"),
)
"""Settings that hold names out of the data. YAML reads `no`, `1e3` and `2024-01-01` as other things than names."""


class _Written(yaml.SafeLoader):
    """Reads every scalar as the text that stands there."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<"))]}  # noqa: RUF012  # as the base has it


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        loaded, written = yaml.safe_load(text), yaml.load(text, _Written)
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror or error}.") from None
    except (yaml.YAMLError, ValueError) as error:  # a date like 2024-13-45 is a plain ValueError
        raise UsageError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise UsageError(f"--config {file} must hold a mapping of settings, not {type(loaded).__name__}.")
    found = {key.replace("-", "_"): key for key in loaded}
    named = {key for key in AS_WRITTEN if key in found and loaded[found[key]] is not None}  # an empty setting is none
    return {key: (written if key in named else loaded)[given] for key, given in found.items()}


def _assign(model: type[BaseModel], merged: dict[str, Any], assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {assignment!r} is not of the form dotted.key=value.")
    keys[0] = keys[0].replace("-", "_")
    if keys[0] not in model.model_fields:
        raise UsageError("--set: " + one_of("setting", keys[0], model.model_fields))
    try:
        value = yaml.safe_load(text)
        if value is not None and len(keys) == 1 and keys[0] in AS_WRITTEN:
            value = yaml.load(text, _Written)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--set {assignment!r}: {' '.join(str(error).split())}") from None
    here = merged
    for key in keys[:-1]:
        inner = here.get(key)
        if isinstance(inner, str | list):
            inner = {"name": inner}
        inner = dict(inner) if isinstance(inner, Mapping) else {}
        here[key] = inner
        here = inner
    here[keys[-1]] = value
