"""What files of ours may hold: each is read as plain YAML or JSON, and checked before anything is made of it.

A file of a newer format is refused as such, never as damaged.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from exitkit.configuration.notation import Currency
from exitkit.errors import ExitkitError

R = TypeVar("R", bound=BaseModel)

Count = Annotated[int, Field(strict=True, ge=0)]
Size = Annotated[int, Field(strict=True, ge=1)]
Ratio = Annotated[float, Field(strict=True)]


MOST_VALUES = 10_000_000
"""In a file. A few lines of aliases of aliases stand for more values than any machine has room for."""


class Record(BaseModel):
    """A mapping in a file. Values are not converted; what a later version adds beside them does not matter."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class Columns(Record):
    """Names of the columns that rows are read from."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    group: str | None = None


class Origin(Record):
    """Where rows come from, see `data.sources.Origin`."""

    source: str
    split: str
    revision: str | None
    columns: Columns
    indices: list[Count] | None


class Hashed(Origin):
    """Rows by their number and content."""

    rows: Count
    hash: str


class LimitsOf(Record):
    """Limits of a policy, see `limits.Limits`."""

    min_exit: Size | None = None
    max_exit: Size | None = None
    never_early: list[str] | None = None
    temperatures: list[Annotated[float, Field(gt=0, lt=inf)]] | None = None


class Point(Record):
    """A setting and what it gives."""

    settings: dict[str, Any]
    speedup: dict[str, Ratio]
    score: Ratio


class Chosen(Point):
    """The setting that a policy runs with."""

    target_speedup: Ratio | None


class Entry(Record):
    """A calibrated policy in policy.yaml."""

    chosen: Chosen
    frontier: list[Point] = Field(min_length=1)
    currency: Currency
    batch_size: Size
    precision: str = "fp32"
    threads: Size
    limits: LimitsOf = LimitsOf()
    calibration: Hashed
    models: list[str] = []

    @model_validator(mode="after")
    def _in_its_currency(self) -> Entry:
        for point in (self.chosen, *self.frontier):
            if self.currency not in point.speedup:
                raise ValueError(f"a speed-up is not given in {self.currency}")
        return self


class Policies(Record):
    """policy.yaml."""

    default: str
    policies: dict[str, Entry]

    @model_validator(mode="after")
    def _has_the_default(self) -> Policies:
        if self.default not in self.policies:
            raise ValueError(f"the default policy '{self.default}' is not among the policies")
        return self


class ExitScore(Record):
    """Of one exit."""

    exit: Size
    layer: Size
    score: Ratio


class Metrics(Record):
    """metrics.json."""

    task: str
    metric: str
    split: str
    exits: list[ExitScore] = Field(min_length=1)


def _rising(layers: tuple[int, ...]) -> tuple[int, ...]:
    if list(layers) != sorted(set(layers)):
        raise ValueError("layers must rise")
    return layers


def _whole(given: Any, record: type[Record]) -> Any:
    if given:
        record.model_validate(given)
    return given


Layers = Annotated[tuple[Size, ...], Field(min_length=1), AfterValidator(_rising)]
"""Of exits, from 1."""
OriginOf = Annotated[dict[str, Any], AfterValidator(lambda given: _whole(given, Origin))]
HashedOf = Annotated[dict[str, Any], AfterValidator(lambda given: _whole(given, Hashed))]
"""Kept as plain data; empty where there are no such rows."""


def read_yaml(file: Path, newest: int) -> dict[str, Any]:
    """The mapping in a YAML file of ours, its `format` included. Raises ExitkitError as `check_format`, or: damaged."""
    if not file.is_file():
        raise damaged(file, "it is no file")
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None and _expanded(node, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
        loaded = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date like 2024-13-45 is a plain ValueError
        raise damaged(file, " ".join(str(error).split())) from None
    return _mapping(file, loaded, newest)


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, each alias counted as what it repeats; very many for a circle."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # while its parts are counted: whoever meets it again is within it
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = (part for pair in parts for part in pair) if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = 1 + sum(_expanded(part, known) for part in flat)
    return known[id(node)]


def read_json(file: Path, newest: int) -> dict[str, Any]:
    """The object in a JSON file of ours. Raises as `read_yaml`."""
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(file, str(error)) from None
    return _mapping(file, loaded, newest)


def _mapping(file: Path, loaded: object, newest: int) -> dict[str, Any]:
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise damaged(file, "it does not hold a mapping")
    form = loaded.get("format", 1)
    if not isinstance(form, int) or isinstance(form, bool) or form < 1:
        raise damaged(file, f"its format is {reprlib.repr(form)}")
    if form > newest:
        raise ExitkitError(
            f"{file} has format {form}; this exitkit reads format {newest}. A newer exitkit made it: update exitkit, "
            "or make the file again with this one."
        )
    return loaded


def checked(file: Path, record: type[R], plain: Mapping[str, Any]) -> R:
    """What a file holds. Raises ExitkitError: it is damaged; the message says where and by what."""
    try:
        return record.model_validate(plain)
    except ValidationError as error:
        raise damaged(file, told(error)) from None


def damaged(file: Path, why: str) -> ExitkitError:
    """The error for a file that cannot be what was saved."""
    return ExitkitError(f"{file} is damaged: {why.rstrip('.')}.")


def told(error: ValidationError) -> str:
    """The first complaint, by the dotted name of the field."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    what = what[:1].lower() + what[1:]
    if first["type"] == "missing":
        return f"{where} is missing"
    given = "" if isinstance(first["input"], dict) else f" {reprlib.repr(first['input'])}:"
    return f"{where}:{given} {what}" if where else what
