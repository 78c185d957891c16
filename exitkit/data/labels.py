"""From whatever stands in a label column to class names and dense ids 0..C-1.

Names do not depend on the file format: the strings "0" and "1" (all that a csv file can hold) are the
integers 0 and 1, true and false are the names that Python prints, and blanks around a name are no part of it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exitkit.errors import UsageError

INTEGER = re.compile(r"0|-?[1-9][0-9]*")
FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_A_NUMBER = re.compile(r"[+-]?nan", re.IGNORECASE)
"""How a missing number is written out, among numbers only: `nan` beside other words is a name."""

Value = str | int | None  # None: the row has no label


@dataclass(frozen=True)
class LabelColumn:
    """A label column, every distinct value that stands in it once."""

    values: tuple[Value, ...]  # what they mean: several may mean the same
    codes: npt.NDArray[np.int64]  # [N] position in `values`, per row
    stripped: tuple[str, ...] = ()  # names that have blanks around them in the data


def label_column(
    name: str,
    column: pa.ChunkedArray,
    classes: Sequence[str] | None,
    known: Sequence[str] = (),
    absent: Collection[str] = (),
) -> LabelColumn:
    """Read a column.

    Args:
        name: of the column.
        column: strings, integers, booleans, or floats and decimals that are whole numbers.
        classes: the class names when its integers are known to be class ids.
        known: the labels of a trained model; they are met as they are written.
        absent: what marks a missing label besides null, an empty string and NaN among numbers.

    Raises UsageError: the column holds what cannot be a class.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _may_be_classes(column.type):
        raise UsageError(_not_classes(name, column.type))
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    raw = encoded.dictionary.to_pylist()
    values = [None if str(value) in absent else value for value in _values(name, raw, classes, known)]
    stripped = [value for value, meant in zip(raw, values, strict=True) if isinstance(value, str) and meant is not None]
    stripped = [value for value in stripped if value != value.strip() and value not in known]
    return LabelColumn(tuple(values), encoded.indices.to_numpy().astype(np.int64), tuple(stripped))


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


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names that differ only by case."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.casefold()].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def look_like_floats(values: Sequence[str | None]) -> bool:
    """Whether texts are decimal numbers and not only whole ones. Codes such as 01 and 007 are not."""
    numbers = [value.strip() for value in values if value is not None and not _is_blank(value)]
    floats = bool(numbers) and all(FLOAT.fullmatch(value) for value in numbers)
    return floats and any(set(value) & set(".eE") for value in numbers)


def are_whole(values: Iterable[Any]) -> bool:
    """Whether numbers, or texts of numbers, are whole ones; what is missing does not matter."""
    return all(_is_missing(value) or float(value).is_integer() for value in values)


def _may_be_classes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_null,
        pa.types.is_floating,
        pa.types.is_decimal,
    )
    return any(test(kind) for test in tests)


def _is_blank(value: str) -> bool:
    return not value.strip() or NOT_A_NUMBER.fullmatch(value.strip()) is not None


def _is_missing(value: Any) -> bool:
    """Of a value among numbers."""
    if isinstance(value, str):
        return _is_blank(value)
    return value is None or (isinstance(value, float) and math.isnan(value))


def _not_classes(name: str, kind: pa.DataType, odd: Any = None) -> str:
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        such = "" if odd is None else f" such as {odd}"
        return (
            f"label column '{name}' holds {kind}{such}, which is not a class. Write classes as integers or strings, or "
            "train with --task regression."
        )
    return f"label column '{name}' holds {kind}. Allowed: one string, integer or boolean per row."


def _values(name: str, raw: Sequence[Any], classes: Sequence[str] | None, known: Sequence[str]) -> list[Value]:
    if classes is not None and not any(isinstance(value, str) for value in raw):
        return [None if _is_missing(value) else _class_name(int(value), classes) for value in raw]
    present = [value for value in raw if value not in (None, "")]
    if not present:
        return [None] * len(raw)
    if all(isinstance(value, str) for value in present):
        return _of_texts(name, raw, known)
    if all(isinstance(value, bool) for value in present):
        return [None if value is None else str(value) for value in raw]
    return _of_numbers(name, raw)


def _of_texts(name: str, raw: Sequence[str | None], known: Sequence[str]) -> list[Value]:
    texts = [value if value is None or value in known else value.strip() or None for value in raw]
    present = {value for value in texts if value is not None}
    numbers = [value for value in present if not _is_blank(value)]
    if present <= set(known) or not numbers:
        return list(texts)
    if all(INTEGER.fullmatch(value) for value in numbers) or look_like_floats(numbers):
        return _of_numbers(name, [None if value is None or _is_blank(value) else _number(value) for value in texts])
    return list(texts)


def _number(text: str) -> int | float:
    return int(text) if INTEGER.fullmatch(text) else float(text)


def _of_numbers(name: str, raw: Sequence[int | float | Decimal | None]) -> list[Value]:
    """Whole numbers as integers. Raises UsageError for others."""
    present = [value for value in raw if value is not None and not _is_missing(value)]
    odd = [value for value in present if not (isinstance(value, int) or float(value).is_integer())]
    if odd:
        raise UsageError(_not_classes(name, pa.float64(), odd[0]))
    # Benchmarks keep test labels back and write -1 in every row; beside other integers, -1 is a class.
    kept_back = {int(value) for value in present} == {-1}
    return [None if value is None or _is_missing(value) or kept_back else int(value) for value in raw]


def _class_name(value: int, classes: Sequence[str]) -> str | None:
    if value < 0:
        return None
    return classes[value] if value < len(classes) else str(value)
