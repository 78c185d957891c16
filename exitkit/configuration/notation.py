"""How values are written: `3x`, `2,4,6`, `4GB`, `f1:LABEL`, on the command line, in YAML files and in Python alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from exitkit.errors import one_of

Currency = Literal["layers", "flops", "time"]
METRICS = ("accuracy", "f1_macro", "f1_micro", "f1:LABEL", "mcc", "pearson", "spearman", "span_f1", "agreement")
InputFormat = Literal["auto", "lines", "csv", "tsv", "jsonl", "json", "parquet", "conll", "conllu"]
TASKS = Literal["classification", "regression", "multi-label", "tagging"]


def _speedup(value: Any) -> Any:
    """`3x`, `3` and `3.0x` mean the same."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*[xX×]?\s*", str(value))
    if match is None:
        raise ValueError(f"'{value}' is not a speed-up; write it like 3x or 2.5x")
    number = float(match.group(1))
    if number < 1:
        raise ValueError(f"{value} would be slower than the full model; the smallest speed-up is 1x")
    return number


def _list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _numbers(value: Any) -> Any:
    """A single number stands for a list of one."""
    return [value] if isinstance(value, int | float) else _list(value)


def _speedups(value: Any) -> Any:
    found = [_speedup(one) for one in _numbers(value)]
    if not found:
        raise ValueError("an empty list; write speed-ups like 1x,2x,3x, or leave it out")
    return found


def _exits(value: Any) -> Any:
    if value in (None, "all"):
        return None
    try:
        layers = [int(str(part)) for part in _numbers(value)]  # by way of str: neither 2.5 nor true is a layer
    except (TypeError, ValueError):
        raise ValueError(f"'{value}' is neither 'all' nor a list of layers like 2,4,6") from None
    if not layers:
        raise ValueError("an empty list of exits; write 'all' or layers like 2,4,6")
    return layers


def _metric(value: Any) -> Any:
    known = {name for name in METRICS if ":" not in name}
    if value is None or value in known or (str(value).startswith("f1:") and len(str(value)) > 3):
        return value
    raise ValueError(one_of("metric", str(value), METRICS))


def _class_weights(value: Any) -> Any:
    if value in (None, "none"):
        return None
    if isinstance(value, Mapping):
        return {str(label): weight for label, weight in value.items()}
    if value != "balanced":
        raise ValueError(f"'{value}' is neither 'balanced' nor a mapping of labels to weights")
    return value


def _teachers(value: Any) -> Any:
    parts = [value] if isinstance(value, str | Path) else value
    if not isinstance(parts, list | tuple):
        return value
    return [name for part in parts for name in _list(str(part))]


def layer_map(value: Any) -> str | None:
    """A list of layers is as good as its text."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else None if value is None else str(value)


def _bytes(value: Any) -> Any:
    bytes_of(str(value))
    return str(value)


def bytes_of(size: str) -> int:
    """`4GB`, `500 MB` and `0` as a number of bytes; a bare number is bytes. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kMGT]?)(i?)B?\s*", size, re.IGNORECASE)
    if match is None:
        raise ValueError(f"'{size}' is not a size; write it like 4GB or 500MB, or 0 for none")
    powers = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
    base = 1024.0 if match[3] else 1000.0
    return round(float(match[1]) * base ** powers[match[2].lower()])


def named(value: Any) -> Any:
    """`entropy` and `[entropy, patience]` are short for a mapping with a `name`."""
    return {"name": value} if isinstance(value, str | list | tuple) else value


Speedup = Annotated[float, BeforeValidator(_speedup)]
Speedups = Annotated[list[float], BeforeValidator(_speedups)]
Names = Annotated[list[str], BeforeValidator(_list)]
Sizes = Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_numbers)]
Exits = Annotated[list[int] | None, BeforeValidator(_exits)]
Teachers = Annotated[list[str], BeforeValidator(_teachers)]
LayerMap = Annotated[str | None, BeforeValidator(layer_map)]
Bytes = Annotated[str, BeforeValidator(_bytes)]
LabelNames = Annotated[list[str] | None, BeforeValidator(_list)]
Metric = Annotated[str | None, BeforeValidator(_metric)]
ClassWeights = Annotated[
    Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None, BeforeValidator(_class_weights)
]
