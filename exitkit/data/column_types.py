"""Arrow types of columns: as few as the rest has to know, joined where shards differ, and short in messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from exitkit.errors import UsageError

LONGEST = 200  # characters of a type in a message
WHOLE_NUMBER = r"^(0|-?[1-9][0-9]*)$"


def shown(kind: pa.DataType) -> str:
    """A type for a message: a wide struct is cut."""
    text = str(kind)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without views and dictionaries, and with texts that were stored as bytes as texts.

    Bytes that are no UTF-8 stay bytes.
    """
    column = column.cast(_plain_type(column.type)) if _plain_type(column.type) != column.type else column
    if types.is_binary(column.type) or types.is_large_binary(column.type):
        try:
            return column.cast(pa.large_string() if types.is_large_binary(column.type) else pa.string())
        except pa.ArrowInvalid:
            return column
    return column


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_element(kind.value_type), kind.list_size)
    if any(test(kind) for test in (types.is_list, types.is_large_list, types.is_list_view, types.is_large_list_view)):
        return pa.list_(_plain_element(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type)) for field in kind.fields])
    return kind


def _plain_element(kind: pa.DataType) -> pa.DataType:
    """Words are short: no list of them needs 64-bit offsets."""
    inner = _plain_type(kind)
    return pa.string() if types.is_large_string(inner) else inner


def field_type(kind: pa.DataType, path: Sequence[str]) -> pa.DataType:
    """The plain type of what lies where `path`, which begins with the column, leads from a column of type `kind`.

    Raises UsageError: it leads nowhere; the message says what is there.
    """
    kind = _plain_type(kind)
    for step in path[1:]:
        if not types.is_struct(kind) or kind.get_field_index(step) < 0:
            has = ", ".join(field.name for field in kind.fields) if types.is_struct(kind) else shown(kind)
            raise UsageError(f"column '{path[0]}' has no field '{step}' inside; it holds {has:.300}.")
        kind = kind.field(step).type
    return kind


def holds_text(kind: pa.DataType) -> bool:
    """Whether a plain column may hold texts; bytes may."""
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_null)
    return any(test(kind) for test in tests)


def joined_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The one type that holds what both hold, where that is sure; None where it is not."""
    if first == second or types.is_null(second):
        return first
    if types.is_null(first):
        return second
    pair = (first, second)
    if all(types.is_string(kind) or types.is_large_string(kind) for kind in pair):
        return pa.large_string()
    if all(types.is_signed_integer(kind) or types.is_uint8(kind) or types.is_uint16(kind) for kind in pair):
        return pa.int64()
    if all(types.is_integer(kind) for kind in pair):
        return pa.int64()  # casts refuse what does not fit
    if all(types.is_floating(kind) for kind in pair):
        return pa.float64()
    if all(is_list(kind) for kind in pair):
        inner = joined_type(first.value_type, second.value_type)
        return None if inner is None else pa.list_(inner)
    return None


def is_list(kind: pa.DataType) -> bool:
    """Whether a plain column holds lists."""
    return any(test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def numbers_as_texts(columns: Sequence[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Columns of whole numbers and of texts that write whole numbers, all as texts; as they are where others occur.

    A file format that knows no numbers writes "1" for the class that another writes as 1.
    """
    texts = [types.is_string(column.type) or types.is_large_string(column.type) for column in columns]
    known = [
        pc.all(pc.match_substring_regex(column, WHOLE_NUMBER)).as_py() is not False
        if text
        else types.is_integer(column.type) or types.is_null(column.type)
        for column, text in zip(columns, texts, strict=True)
    ]
    if not (any(texts) and all(known)):
        return list(columns)
    return [column.cast(pa.large_string()) for column in columns]


def class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Names of classes by column, as `datasets` notes them in a Parquet file; kinds of feature that are not known
    here, as those of a later version, have none.
    """
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
        return {name: names for name, feature in features.items() if (names := _named(feature))}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _named(feature: Any) -> tuple[str, ...]:
    if isinstance(feature, list) and len(feature) == 1:  # how older versions write a list
        return _named(feature[0])
    if not isinstance(feature, Mapping):
        return ()
    if feature.get("_type") == "ClassLabel":
        return tuple(feature.get("names") or ())
    return _named(feature.get("feature"))
