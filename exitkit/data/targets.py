"""A label column as what a task learns: class numbers, values, or rows of zeros and ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exitkit.data.conll import listed
from exitkit.data.labels import label_column, label_ids, label_names, looks_like_floats
from exitkit.data.tables import Piece, Table
from exitkit.errors import ExitkitError, UsageError, one_of
from exitkit.tagging import first_break, odd_ones, sentences
from exitkit.tasks import Classification, MultiLabel, Regression, Tagging, Task

SEPARATORS = "|;,"

log = logging.getLogger("exitkit")


@dataclass(frozen=True)
class Targets:
    """The labels of some pieces, in their order."""

    task: Task
    values: tuple[npt.NDArray[Any], ...]  # per piece: [n] numbers or values, [n, C] in multi-label, [n] sentences
    gaps: tuple[npt.NDArray[np.bool_], ...]  # per piece: [n] rows without a label


def targets(pieces: Sequence[Piece], name: str, wanted: Task | str | None) -> Targets:
    """Read the label column of some pieces.

    Args:
        pieces: of splits that have the column; classes are those of the whole splits.
        name: the column.
        wanted: the task of a trained model, whose labels the column's are mapped to; or a kind; or None to see it from
            the column: floats mean regression, lists multi-label (tagging must be asked for), anything else
            classification.

    Raises:
        UsageError: the column does not hold such labels, or a row has a label that the model does not know.
    """
    columns = [_plain(piece.table.column(name)) for piece in pieces]
    kind = wanted.kind if isinstance(wanted, Task) else wanted or _kind(columns)
    known = wanted.labels if isinstance(wanted, Task) else ()
    return _READERS[kind](pieces, name, columns, known)


def any_label(table: Table, name: str) -> bool:
    """Whether any row has a label: benchmarks write none, or -1, in every row of a test split."""
    column = _plain(table.column(name))
    if is_list(column.type) and pa.types.is_integer(column.type.value_type):
        inside = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return bool(column.null_count < len(column) and (not len(inside) or (inside != -1).any()))
    if pa.types.is_floating(column.type) or is_list(column.type):
        return bool(column.null_count < len(column))
    if _kind([column]) == "regression":
        return any(value not in (None, "") for value in column.unique().to_pylist())
    return any(value is not None for value in label_column(name, column, table.classes.get(name)).values)


def _kind(columns: Sequence[pa.ChunkedArray]) -> str:
    if any(is_list(column.type) for column in columns):
        return MultiLabel.kind
    numbers = [pa.types.is_floating(column.type) or pa.types.is_decimal(column.type) for column in columns]
    texts = [pa.types.is_string(column.type) or pa.types.is_large_string(column.type) for column in columns]
    if any(numbers):
        return Regression.kind
    if all(texts) and looks_like_floats([value for column in columns for value in column.unique().to_pylist()]):
        return Regression.kind
    return Classification.kind


def _classification(
    pieces: Sequence[Piece], name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str]
) -> Targets:
    read = [label_column(name, c, p.table.classes.get(name)) for c, p in zip(columns, pieces, strict=True)]
    names = tuple(known) or pieces[0].table.classes.get(name) or label_names(read)
    found = [label_ids(column, names)[p.start : p.stop] for column, p in zip(read, pieces, strict=True)]
    for column, piece, ids in zip(read, pieces, found, strict=True):
        if (ids == -2).any():
            row = int((ids == -2).argmax())
            _unknown(piece, row, column.values[column.codes[piece.start + row]], names)
    return Targets(Classification(names), tuple(found), tuple(ids < 0 for ids in found))


def _multi_label(
    pieces: Sequence[Piece], name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str]
) -> Targets:
    lists = [column if is_list(column.type) else _split_up(name, column) for column in columns]
    flat = [
        label_column(name, pa.chunked_array([column.combine_chunks().flatten()]), piece.table.classes.get(name))
        for column, piece in zip(lists, pieces, strict=True)
    ]
    names = tuple(known) or pieces[0].table.classes.get(name) or label_names(flat)
    if not names:
        raise UsageError(f"label column '{name}' holds empty lists only; at least one class is needed.")
    values, gaps = [], []
    for column, elements, piece in zip(lists, flat, pieces, strict=True):
        lengths = column.combine_chunks().value_lengths()
        gaps.append(np.asarray(lengths.is_null())[piece.start : piece.stop])
        counts = lengths.fill_null(0).to_numpy()
        rows = np.repeat(np.arange(len(column)), counts)
        ids = label_ids(elements, names)
        inside = (rows >= piece.start) & (rows < piece.stop)
        if (ids[inside] < 0).any():
            place = int(np.flatnonzero(inside)[(ids[inside] < 0).argmax()])
            _unknown(piece, int(rows[place]) - piece.start, elements.values[elements.codes[place]], names)
        holds = np.zeros((len(column), len(names)), dtype=np.int8)
        holds[rows[inside], ids[inside]] = 1
        values.append(holds[piece.start : piece.stop])
    return Targets(MultiLabel(names), tuple(values), tuple(gaps))


def _tagging(pieces: Sequence[Piece], name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str]) -> Targets:
    lists = [words(piece, name, column, numbers=True) for column, piece in zip(columns, pieces, strict=True)]
    flat = [
        label_column(name, pa.chunked_array([column.combine_chunks().flatten()]), piece.table.classes.get(name))
        for column, piece in zip(lists, pieces, strict=True)
    ]
    names = tuple(known) or pieces[0].table.classes.get(name) or label_names(flat)
    if not names:
        raise UsageError(f"tag column '{name}' holds empty lists only; at least one tag is needed.")
    values, gaps = [], []
    for column, elements, piece in zip(lists, flat, pieces, strict=True):
        lengths = column.combine_chunks().value_lengths()
        gaps.append(np.asarray(lengths.is_null())[piece.start : piece.stop])
        ends = np.concatenate([[0], lengths.fill_null(0).to_numpy().cumsum()])
        ids = label_ids(elements, names)
        untagged = _untagged(ids, ends)
        gaps[-1] |= untagged[piece.start : piece.stop]
        wrong = (ids < 0) & ~np.repeat(untagged, np.diff(ends))
        first, last = int(ends[piece.start]), int(ends[piece.stop])
        if wrong[first:last].any():
            place = first + int(wrong[first:last].argmax())
            row = int(np.searchsorted(ends, place, side="right")) - 1
            tag = elements.values[elements.codes[place]]
            if tag is None:
                raise UsageError(f"{piece.row(row - piece.start)}: word {place - int(ends[row]) + 1} has no tag.")
            _unknown(piece, row - piece.start, tag, names)
        rows = [ids[:0] if gap else row for gap, row in zip(untagged, np.split(ids, ends[1:-1]), strict=True)]
        values.append(sentences(rows[piece.start : piece.stop]))
    task = Tagging(names)
    _warn_of_breaks(pieces, values, task)
    return Targets(task, tuple(values), tuple(gaps))


def _untagged(ids: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Rows of which no word has a tag, though there are words: benchmarks write −1 where they keep tags back."""
    counts = np.diff(ends)
    missing = np.concatenate([[0], (ids == -1).cumsum()])
    untagged: npt.NDArray[np.bool_] = (counts > 0) & (missing[ends[1:]] - missing[ends[:-1]] == counts)
    return untagged


def _warn_of_breaks(pieces: Sequence[Piece], values: Sequence[npt.NDArray[Any]], task: Tagging) -> None:
    """Say how many sentences break the scheme of the tags, and where the first is."""
    if odd := odd_ones(task.labels):
        log.warning(
            "the tags look as if they wrote spans, but %s do not fit, so that no scheme is seen and words are scored "
            "one by one; if these mark spans too, write all tags as IOB2, IOBES or BILOU",
            ", ".join(map(repr, odd)),
        )
    if task.scheme is None:
        return
    broken = []
    for piece, rows in zip(pieces, values, strict=True):
        for number, row in enumerate(rows):
            tags = [task.labels[tag] for tag in row]
            place = first_break(tags, task.scheme)
            if place is not None:
                before = f" after {tags[place - 1]}" if place else " at the start"
                broken.append(f"{piece.row(number)}, word {place + 1}: {tags[place]}{before}")
    if broken:
        log.warning(
            "%d sentences have tags that break the scheme %s (first: %s); by its strict rules such spans do not count",
            len(broken),
            task.scheme,
            broken[0],
        )


def words(piece: Piece, name: str, column: pa.ChunkedArray, numbers: bool = False) -> pa.ChunkedArray:
    """A column of lists of words or, which may be `numbers`, of tags; strings are split: JSON lists, or at blanks.

    Raises UsageError: the column holds something else.
    """
    if pa.types.is_null(column.type):  # no row has any
        return column.cast(pa.list_(pa.null()))
    if is_list(column.type):
        kind = column.type.value_type
        return column.cast(pa.list_(pa.string() if pa.types.is_large_string(kind) else kind))
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UsageError(
            f"column '{name}' of {piece.origin} holds {column.type}; tagging needs a list per row, or a string such as "
            '["a", "b"] or a b.'
        )
    texts: list[str | None] = column.to_pylist()
    try:
        lists = [None if text is None else listed(text, numbers) for text in texts]
    except ValueError as error:
        raise UsageError(
            f"column '{name}' of {piece.origin} holds text that is not a list of words ({error}). Write lists as JSON, "
            'such as ["a", "b"], or give parquet.'
        ) from None
    return pa.chunked_array([pa.array(lists, pa.list_(pa.string()))])


def _regression(
    pieces: Sequence[Piece], name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str]
) -> Targets:
    values, gaps = [], []
    for column, piece in zip(columns, pieces, strict=True):
        numbers = _numbers(piece, name, column.slice(piece.start, piece.stop - piece.start))
        gaps.append(np.isnan(numbers))
        if np.isinf(numbers).any():
            raise ExitkitError(f"{piece.row(int(np.isinf(numbers).argmax()))}: the label is infinite.")
        values.append(numbers)
    return Targets(Regression(), tuple(values), tuple(gaps))


_READERS: dict[str, Callable[[Sequence[Piece], str, Sequence[pa.ChunkedArray], Sequence[str]], Targets]] = {
    Classification.kind: _classification,
    MultiLabel.kind: _multi_label,
    Regression.kind: _regression,
    Tagging.kind: _tagging,
}


def _numbers(piece: Piece, name: str, column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """[n] with NaN where there is none."""
    found = np.empty(len(column), dtype=np.float64)
    for row, value in enumerate(column.to_pylist()):
        try:
            if isinstance(value, bool):
                raise ValueError
            found[row] = np.nan if value in (None, "") else float(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"{piece.row(row)}: label {value!r} in column '{name}' is not a number, as regression needs."
            ) from None
    return found


def _split_up(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings as lists: JSON lists, or names between the first of | ; , that occurs; an empty string is no label."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UsageError(
            f"label column '{name}' holds {column.type}; multi-label needs a list per row, or a string such as "
            '["a", "b"] or a|b.'
        )
    texts: list[str | None] = column.to_pylist()
    if all(text is None or text.lstrip().startswith("[") for text in texts):
        try:
            return pa.chunked_array([pa.array([None if text is None else json.loads(text) for text in texts])])
        except (json.JSONDecodeError, pa.ArrowException) as error:
            raise UsageError(f"label column '{name}' holds text that is not a JSON list: {error}.") from None
    between = next((sign for sign in SEPARATORS if any(text and sign in text for text in texts)), SEPARATORS[0])
    lists = [None if text is None else [part.strip() for part in text.split(between) if part.strip()] for text in texts]
    return pa.chunked_array([pa.array(lists, pa.list_(pa.string()))])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _unknown(piece: Piece, row: int, value: object, names: Sequence[str]) -> None:
    raise UsageError(f"{piece.row(row)}: {one_of('label', str(value), names)}")
