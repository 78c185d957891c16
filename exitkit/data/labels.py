"""From whatever stands in a label column to class names and dense ids 0..C-1.

Names do not depend on the file format: the strings "0" and "1" (all that a csv file can hold) are the
integers 0 and 1, and true and false are the names that Python prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exitkit.errors import UsageError

INTEGER = re.compile(r"0|-?[1-9][0-9]*")
FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

Value = str | int | None  # None: the row has no label


@dataclass(frozen=True)
class LabelColumn:
    """A label column, every distinct value once."""

    values: tuple[Value, ...]
    codes: npt.NDArray[np.int64]  # [N] position in `values`, per row


def label_column(name: str, column: pa.ChunkedArray, classes: Sequence[str] | None) -> LabelColumn:
    """Read a column; `classes` are the class names when its integers are known to be class ids.

    Raises UsageError: the column holds what cannot be a class.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _may_be_classes(column.type):
        raise UsageError(_not_classes(name, column.type))
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    raw = encoded.dictionary.to_pylist()
    return LabelColumn(tuple(_values(name, raw, classes)), encoded.indices.to_numpy().astype(np.int64))


def label_names(columns: Iterable[LabelColumn]) -> tuple[str, ...]:
    """The classes, where nothing says their order: integers by size, anything else as strings by code
    point.
    """
    values = {value for column in columns for value in column.values if value is not None}
    numbers = sorted(value for value in values if isinstance(value, int))
    if len(numbers) == len(values):
        return tuple(str(value) for value in numbers)
    return tuple(sorted(str(value) for value in values))


def label_ids(column: LabelColumn, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """[N] the index in `names` of every row's label; -1 missing, -2 not among the names.

    Integers count as indices when `names` has no integers: people write 0 and 1 for the classes of a model
    whose labels are words.
    """
    index = {name: i for i, name in enumerate(names)}
    numbers = [value for value in column.values if isinstance(value, int)]
    if not any(str(value) in index for value in numbers) and not any(map(INTEGER.fullmatch, names)):
        known: dict[str, int] = index | {str(i): i for i in range(len(names))}
    else:
        known = index
    ids = [-1 if value is None else known.get(str(value), -2) for value in column.values]
    return np.asarray(ids, dtype=np.int64)[column.codes]


def _may_be_classes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def looks_like_floats(values: Sequence[Any]) -> bool:
    """Whether texts are decimal numbers and not only whole ones. Codes such as 01 and 007 are not."""
    present = [value for value in values if value not in (None, "")]
    floats = bool(present) and all(FLOAT.fullmatch(value) for value in present)
    return floats and any(set(value) & set(".eE") for value in present)


def _not_classes(name: str, kind: pa.DataType) -> str:
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return (
            f"label column '{name}' holds {kind}, which is not a class. Write classes as integers or strings (a "
            "missing integer turns a pandas column into floats), or train with --task regression."
        )
    return f"label column '{name}' holds {kind}. Allowed: one string, integer or boolean per row."


def _values(name: str, raw: Sequence[Any], classes: Sequence[str] | None) -> list[Value]:
    present = [value for value in raw if value not in (None, "")]
    if classes is not None:
        return [_class_name(value, classes) for value in raw]
    if not present:
        return [None] * len(raw)
    if all(isinstance(value, bool) for value in present):
        return [None if value is None else str(value) for value in raw]
    if all(isinstance(value, int) for value in present):
        # Benchmarks keep test labels back and write -1 in every row; beside other integers, -1 is a class.
        return [None] * len(raw) if present == [-1] else list(raw)
    if all(INTEGER.fullmatch(value) for value in present):
        return _values(name, [None if value in (None, "") else int(value) for value in raw], None)
    if looks_like_floats(present):
        raise UsageError(_not_classes(name, pa.float64()))
    return [value or None for value in raw]


def _class_name(value: int | None, classes: Sequence[str]) -> str | None:
    if value is None or value < 0:
        return None
    return classes[value] if value < len(classes) else str(value)
