"""What a label column holds, seen from its values where nobody said it: one class a row, a number, or several classes.

A guess keeps to one rule for each type of column; where the values leave it open, it is refused and the flag named.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exitkit.data.labels import INTEGER, are_whole, look_like_floats
from exitkit.errors import UsageError
from exitkit.tasks import Classification, MultiLabel, Regression

SEPARATORS = "|;,"
ITEM = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,\[\]'"]+""")
LIST = re.compile(rf"\[\s*(?:(?:{ITEM.pattern})(?:\s*,\s*|\s+|(?=\])))*\]")
FLAG = "--task changes this"


@dataclass(frozen=True)
class Kind:
    """The kind of task that labels are for, and what to tell of the choice."""

    name: str
    because: str = ""  # what it was seen from, where that is no matter of course
    otherwise: str = FLAG  # the flag that changes it


def kind_of(name: str, columns: Sequence[pa.ChunkedArray]) -> Kind:
    """The kind that columns of one name speak of; columns with codes are plain by now.

    Raises UsageError: some values are written as lists and others are not.
    """
    if any(is_list(column.type) for column in columns):
        return Kind(MultiLabel.kind, "they are lists")
    if any(is_float(column.type) for column in columns):
        whole = all(are_whole(column.unique().to_pylist()) for column in columns if is_number(column.type))
        return Kind(Regression.kind, "they are floats or decimals", _whole(whole))
    plain = [column for column in columns if is_text(column.type) or pa.types.is_integer(column.type)]
    values = [value for column in plain for value in column.unique().to_pylist() if value not in (None, "")]
    if values and all(isinstance(value, str) for value in values):
        return _of_texts(name, values)
    return Kind(Classification.kind, otherwise=_of_ratings(values))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def is_float(kind: pa.DataType) -> bool:
    """Whether a column holds numbers with places, which may all be zero."""
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    return is_float(kind) or bool(pa.types.is_integer(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def holds_floats(column: pa.ChunkedArray) -> bool:
    """Whether a column holds floats, as numbers or written out."""
    return is_float(column.type) or (is_text(column.type) and look_like_floats(column.unique().to_pylist()))


def _of_texts(name: str, values: Sequence[str]) -> Kind:
    if look_like_floats(values):
        return Kind(Regression.kind, "they are floats", _whole(are_whole(values)))
    if all(INTEGER.fullmatch(value.strip()) for value in values):
        return Kind(Classification.kind, otherwise=_of_ratings([int(value) for value in values]))
    lists = [value for value in values if listed(value) is not None]
    if lists and len(lists) < len(values):
        other = next(value for value in values if listed(value) is None)
        raise UsageError(
            f"label column '{name}' holds {lists[0]!r:.80}, which is written as a list, and {other!r:.80}, which is "
            "not. Write all rows as lists for several classes a row, or say with --task classification that these are "
            "names."
        )
    if lists:
        return Kind(MultiLabel.kind, "they are written as lists", "--task classification takes each as one name")
    if separator := _joined_by(values):
        return Kind(Classification.kind, otherwise=f"--task multi-label takes '{separator}' as between several")
    return Kind(Classification.kind)


def _whole(whole: bool) -> str:
    return "all are whole: --task classification takes them as classes" if whole else FLAG


def _of_ratings(values: Sequence[Any]) -> str:
    """Whole numbers from 1 on, or from 0 to 10, are more often ratings than class ids."""
    numbers = sorted({value for value in values if isinstance(value, int) and not isinstance(value, bool)})
    ratings = len(numbers) >= 3 and numbers in (list(range(1, min(len(numbers), 10) + 1)), list(range(11)))
    return "if they are ratings, --task regression takes them as values" if ratings else FLAG


def _joined_by(values: Sequence[str]) -> str | None:
    """The sign between several names of a label, where parts of one label stand in others as well."""
    for sign in SEPARATORS:
        labels = [{part.strip() for part in value.split(sign)} for value in values]
        stands_in = Counter(part for parts in labels for part in parts)
        if any(stands_in[part] > 1 for parts in labels if len(parts) > 1 for part in parts):
            return sign
    return None


def listed(text: str) -> list[Any] | None:
    """The values of a flat list that JSON, Python or numpy has written as text; None for any other text.

    numpy has blanks between values. Words without quotes are no values: `[x]` is a name.
    """
    bare = text.strip()
    if not LIST.fullmatch(bare):
        return None
    try:
        found = json.loads(bare)
    except ValueError:
        found = [_item(item) for item in ITEM.findall(bare[1:-1])]
    return None if any(isinstance(value, list | dict) or value is Ellipsis for value in found) else found


def _item(text: str) -> Any:
    """One value as Python writes it, or as numpy does (`1.`, `True`); Ellipsis where it is none."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return Ellipsis
    return value if isinstance(value, str | int | float | None) else Ellipsis


# Vectors


def vector_length(name: str, columns: Sequence[pa.ChunkedArray], fixed: bool) -> int | None:
    """C where lists are vectors of zeros and ones, one for each class; None where they are sets of names.

    A set never names a class twice, so that three or more values of which all are 0 or 1 are a vector; of two values
    only [0, 0] and [1, 1] are for sure. `fixed`: the type of the columns is of lists of one length.

    Raises UsageError: they may be either, or not all vectors have one length.
    """
    lengths = _joined([pc.list_value_length(column).drop_null().to_numpy() for column in columns])
    flat = [pc.list_flatten(column) for column in columns]
    if not len(lengths) or not all(_zeros_and_ones(values) for values in flat):
        return None
    longest = int(lengths.max())
    ones = _joined([_ones(values) for values in flat])
    ends = lengths.cumsum()
    up_to = np.concatenate([[0], ones.cumsum()])
    sums = up_to[ends] - up_to[ends - lengths]  # [N]
    twice = (lengths > 2) | ((lengths == 2) & (sums != 1))
    if not twice.any():
        if longest == 2 and (lengths == 2).all() and not fixed:
            raise UsageError(
                f"label column '{name}' holds 0 and 1 in every row: as a vector that names one of two classes, as a "
                'set both in every row. Write class names, such as ["yes"], or for one class a row a plain column.'
            )
        return longest if fixed and longest >= 2 else None
    if (lengths != longest).any():
        raise UsageError(
            f"label column '{name}' holds lists of 0 and 1 that look like vectors with a place for each class, but "
            f"have {int(lengths.min())} to {longest} values. Give all vectors one length, or write sets of class names."
        )
    return longest


def vectors(column: pa.ChunkedArray, length: int) -> npt.NDArray[np.int8]:
    """[N, C] zeros and ones; a missing row has zeros."""
    there = pc.is_valid(column).to_numpy()
    found = np.zeros((len(column), length), dtype=np.int8)
    found[there] = _ones(pc.list_flatten(column)).reshape(-1, length)
    return found


def _zeros_and_ones(values: pa.ChunkedArray) -> bool:
    """Whether nothing else is there, and nothing is missing."""
    return not values.null_count and all(value in (0, 1, "0", "1") for value in values.unique().to_pylist())


def _ones(values: pa.ChunkedArray) -> npt.NDArray[np.int8]:
    """[N] zeros and ones as numbers, of numbers, truth values or texts."""
    found: npt.NDArray[np.int8] = values.cast(pa.int8()).to_numpy()
    return found


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
