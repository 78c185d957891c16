"""A label column as what a task learns: class numbers, values, or rows of zeros and ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exitkit.data.conll import listed
from exitkit.data.kinds import SEPARATORS, Kind, holds_floats, is_list, kind_of, vector_length, vectors
from exitkit.data.kinds import listed as values_listed
from exitkit.data.labels import NOT_A_NUMBER, LabelColumn, alike, label_column, label_ids, label_names
from exitkit.data.tables import Piece, Table
from exitkit.errors import ExitkitError, UsageError, one_of
from exitkit.tasks import Classification, MultiLabel, Regression, Tagging, Task
from exitkit.tasks.tags import LEFT_OUT, first_break, notation, sentences

log = logging.getLogger("exitkit")


@dataclass(frozen=True)
class Targets:
    """The labels of some pieces, in their order."""

    task: Task
    values: tuple[npt.NDArray[Any], ...]  # per piece: [n] numbers or values, [n, C] in multi-label, [n] sentences
    gaps: tuple[npt.NDArray[np.bool_], ...]  # per piece: [n] rows without a label
    kind: Kind | None = None  # how the task was seen from the column; None where it was known


def targets(pieces: Sequence[Piece], name: str, wanted: Task | str | None) -> Targets:
    """Read the label column of some pieces.

    Args:
        pieces: of splits that have the column; classes are those of the whole splits.
        name: the column.
        wanted: the task of a trained model, whose labels the column's are mapped to; or a kind; or None to see it from
            the column: floats mean regression, lists, also those written as text, multi-label (tagging must be asked
            for), anything else classification.

    Raises:
        UsageError: the column does not hold such labels, or a row has a label that the model does not know.
    """
    columns = [_plain(piece.table.column(name)) for piece in pieces]
    if isinstance(wanted, Task):
        return _READERS[wanted.kind](pieces, name, columns, wanted.labels)
    seen = kind_of(name, columns) if wanted is None else Kind(wanted)
    found = _READERS[seen.name](pieces, name, columns, ())
    return replace(found, kind=found.kind or (seen if wanted is None else None))


def any_label(table: Table, name: str) -> bool:
    """Whether any row has a label: benchmarks write none, or -1, in every row of a test split."""
    column = _plain(table.column(name))
    if is_list(column.type) and pa.types.is_integer(column.type.value_type):
        inside = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        kept_back = np.isin(inside, (-1, LEFT_OUT))
        return bool(column.null_count < len(column) and (not len(inside) or not kept_back.all()))
    if is_list(column.type):
        return bool(column.null_count < len(column))
    if holds_floats(column):
        return any(not _no_number(value) for value in column.unique().to_pylist())
    return any(value is not None for value in label_column(name, column, table.classes.get(name)).values)


def _classification(
    pieces: Sequence[Piece], name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str]
) -> Targets:
    read, names = _classes(pieces, name, columns, known)
    found = [label_ids(column, names)[p.start : p.stop] for column, p in zip(read, pieces, strict=True)]
    for column, piece, ids in zip(read, pieces, found, strict=True):
        if (ids == -2).any():
            row = int((ids == -2).argmax())
            _unknown(piece, row, column.values[column.codes[piece.start + row]], names)
    return Targets(Classification(names), tuple(found), tuple(ids < 0 for ids in found))


def _classes(
    pieces: Sequence[Piece],
    name: str,
    columns: Sequence[pa.ChunkedArray],
    known: Sequence[str],
    absent: Collection[str] = (),
) -> tuple[list[LabelColumn], tuple[str, ...]]:
    """Columns of labels and the names of all classes; what is odd about names that are new is told."""
    read = [_label_column(piece, name, column, known, absent) for column, piece in zip(columns, pieces, strict=True)]
    names = tuple(known) or pieces[0].table.classes.get(name) or label_names(read)
    if known:
        return read, names
    if stripped := sorted({value for column in read for value in column.stripped}):
        log.warning(
            "column '%s': blanks around %d of the labels are no part of them (%s)", name, len(stripped), _cut(stripped)
        )
    if groups := alike(names):
        log.warning(
            "column '%s': labels that differ only in upper and lower case are different classes (%s); write alike what "
            "is one",
            name,
            "; ".join(_cut(group) for group in groups[:3]),
        )
    return read, names


def _label_column(
    piece: Piece, name: str, column: pa.ChunkedArray, known: Sequence[str], absent: Collection[str]
) -> LabelColumn:
    try:
        return label_column(name, column, piece.table.classes.get(name), known, absent)
    except UsageError as error:
        raise UsageError(f"{piece.origin}: {error}") from None


def _cut(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _multi_label(
    pieces: Sequence[Piece], name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str]
) -> Targets:
    fixed = all(pa.types.is_fixed_size_list(column.type) for column in columns)
    lists = [_lists(column) if is_list(column.type) else _split_up(name, column) for column in columns]
    if length := vector_length(name, lists, fixed):
        return _of_vectors(pieces, name, lists, known, length)
    flat, names = _classes(pieces, name, [pc.list_flatten(column) for column in lists], known)
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


def _of_vectors(
    pieces: Sequence[Piece], name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str], length: int
) -> Targets:
    """Rows that are vectors of zeros and ones already; the classes are called by their places."""
    classes = pieces[0].table.classes.get(name, ())
    names = tuple(known) or (classes if len(classes) == length else tuple(map(str, range(length))))
    if len(names) != length:
        raise UsageError(
            f"label column '{name}' holds vectors of {length} zeros and ones, but the model knows {len(names)} "
            f"classes: {', '.join(names)}. Give vectors with a place for each, or train a model on such vectors."
        )
    values = [vectors(column, length)[piece.start : piece.stop] for column, piece in zip(columns, pieces, strict=True)]
    gaps = [
        pc.is_null(column).to_numpy()[piece.start : piece.stop] for column, piece in zip(columns, pieces, strict=True)
    ]
    kind = Kind(MultiLabel.kind, "they are vectors with a 0 or 1 for each class")
    return Targets(MultiLabel(names), tuple(values), tuple(gaps), kind)


def _tagging(pieces: Sequence[Piece], name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str]) -> Targets:
    lists = [words(piece, name, column, numbers=True) for column, piece in zip(columns, pieces, strict=True)]
    inside = [pc.list_flatten(column) for column in lists]
    named = bool(known or pieces[0].table.classes.get(name))
    flat, names = _classes(pieces, name, inside, known, _marks(name, inside, known, named))
    if not names:
        raise UsageError(f"tag column '{name}' holds empty lists only; at least one tag is needed.")
    values, gaps, left_out = [], [], LeftOut()
    for column, elements, piece in zip(lists, flat, pieces, strict=True):
        lengths = column.combine_chunks().value_lengths()
        ends = np.concatenate([[0], lengths.fill_null(0).to_numpy().cumsum()])
        ids = label_ids(elements, names)
        untagged = _untagged(ids, ends)
        gaps.append((np.asarray(lengths.is_null()) | untagged)[piece.start : piece.stop])
        first, last = int(ends[piece.start]), int(ends[piece.stop])
        if (ids[first:last] == -2).any():
            place = first + int((ids[first:last] == -2).argmax())
            row = int(np.searchsorted(ends, place, side="right")) - 1
            _unknown(piece, row - piece.start, elements.values[elements.codes[place]], names)
        left_out.add(piece, ids, ends, untagged)
        ids = np.where(ids == -1, LEFT_OUT, ids)
        rows = [ids[:0] if gap else row for gap, row in zip(untagged, np.split(ids, ends[1:-1]), strict=True)]
        values.append(sentences(rows[piece.start : piece.stop]))
    left_out.tell()
    task = Tagging(names)
    _warn_of_breaks(pieces, values, task)
    return Targets(task, tuple(values), tuple(gaps))


def _marks(name: str, columns: Sequence[pa.ChunkedArray], known: Sequence[str], named: bool) -> set[str]:
    """The tags that mark words to be left out, besides null: -100, and beside whole numbers from 0 on -1.

    `named`: the names of all tags are known.

    Raises UsageError: tags are -1, 0 and 1, which are as often three tags.
    """
    if named:
        return {"-100", "-1"} - set(known)
    found = {str(value).removesuffix(".0") for column in columns for value in column.unique().to_pylist()}
    tags = found - {"-100", "-1", "None", "nan"}
    if "-1" not in found or not all(map(str.isdecimal, tags)):
        return {"-100"}
    if tags == {"0", "1"}:
        raise UsageError(
            f"column '{name}' holds the tags -1, 0 and 1: -1 may be a tag of its own, or mark words to be left out. "
            "Write -100 for words to be left out; for three tags, give names such as neg, neutral, pos."
        )
    return {"-100", "-1"}


@dataclass
class LeftOut:
    """Words without a tag in sentences that have some: they are neither trained on nor scored."""

    words: int = 0
    first: str = ""  # where the first one is

    def add(
        self, piece: Piece, ids: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], untagged: npt.NDArray[np.bool_]
    ) -> None:
        """Those of one piece; `ids` are of all words of its table, −1 without a tag, `ends` [N + 1] of its rows."""
        missing = (ids == -1) & ~np.repeat(untagged, np.diff(ends))
        first, last = int(ends[piece.start]), int(ends[piece.stop])
        places = first + np.flatnonzero(missing[first:last])
        if len(places) and not self.words:
            row = int(np.searchsorted(ends, places[0], side="right")) - 1
            self.first = f"{piece.row(row - piece.start)}, word {int(places[0]) - int(ends[row]) + 1}"
        self.words += len(places)

    def tell(self) -> None:
        """Say how many there are."""
        if self.words:
            log.warning(
                "%d words have no tag (-100, -1 or null; first: %s): they are neither trained on nor scored",
                self.words,
                self.first,
            )


def _untagged(ids: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Rows of which no word has a tag, though there are words: benchmarks write −1 where they keep tags back."""
    counts = np.diff(ends)
    missing = np.concatenate([[0], (ids == -1).cumsum()])
    untagged: npt.NDArray[np.bool_] = (counts > 0) & (missing[ends[1:]] - missing[ends[:-1]] == counts)
    return untagged


def _warn_of_breaks(pieces: Sequence[Piece], values: Sequence[npt.NDArray[Any]], task: Tagging) -> None:
    """Say how many sentences break the scheme of the tags, and where the first is."""
    if other := notation(task.labels):
        log.warning(
            "the tags look as if they wrote spans, but %s, so that no scheme is seen and words are scored one by one; "
            "if these mark spans, write all tags as IOB2, IOBES or BILOU (such as B-PER, I-PER, O)",
            other,
        )
    if task.scheme is None:
        return
    broken = []
    for piece, rows in zip(pieces, values, strict=True):
        for number, row in enumerate(rows):
            tagged = np.flatnonzero(row != LEFT_OUT)
            tags = [task.labels[tag] for tag in row[tagged]]
            place = first_break(tags, task.scheme)
            if place is not None:
                before = f" after {tags[place - 1]}" if place else " at the start"
                broken.append(f"{piece.row(number)}, word {tagged[place] + 1}: {tags[place]}{before}")
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
            found[row] = np.nan if _no_number(value) else float(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"{piece.row(row)}: label {value!r} in column '{name}' is not a number, as regression needs."
            ) from None
    return found


def _no_number(value: Any) -> bool:
    """Whether a value among numbers stands for none."""
    if isinstance(value, str):
        return not value.strip() or NOT_A_NUMBER.fullmatch(value.strip()) is not None
    return value is None or value != value  # NaN


def _split_up(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings as lists: those that JSON, Python or numpy writes, or names between the first of | ; , that occurs.

    An empty string is no label.
    """
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UsageError(
            f"label column '{name}' holds {column.type}; multi-label needs a list per row, or a string such as "
            '["a", "b"] or a|b.'
        )
    texts: list[str | None] = column.to_pylist()
    if all(not text or text.lstrip().startswith("[") for text in texts):
        return _written_lists(name, texts)
    between = next((sign for sign in SEPARATORS if any(text and sign in text for text in texts)), SEPARATORS[0])
    lists = [None if text is None else [part.strip() for part in text.split(between) if part.strip()] for text in texts]
    return pa.chunked_array([pa.array(lists, pa.list_(pa.string()))])


def _written_lists(name: str, texts: Sequence[str | None]) -> pa.ChunkedArray:
    found = {text: values_listed(text) if text else [] for text in dict.fromkeys(texts) if text is not None}
    odd = next((text for text, values in found.items() if values is None), None)
    if odd is not None:
        raise UsageError(
            f"label column '{name}' holds {odd!r:.80}, which is not a list of values. Write lists as JSON, such as "
            '["a", "b"], or give parquet.'
        )
    try:
        return pa.chunked_array([pa.array([None if text is None else found[text] for text in texts])])
    except pa.ArrowException as error:
        raise UsageError(f"label column '{name}' holds lists of mixed values: {error}.") from None


def _lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of one length as lists of any."""
    fixed = pa.types.is_fixed_size_list(column.type)
    return column.cast(pa.list_(column.type.value_type)) if fixed else column


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _unknown(piece: Piece, row: int, value: object, names: Sequence[str]) -> None:
    raise UsageError(f"{piece.row(row)}: {one_of('label', str(value), names)}")
