"""Rows read from a source, and where they came from, so that the same rows can be read again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exitkit.data.catalogue import IN_MEMORY, Catalogue, Source, catalogue
from exitkit.data.column_types import shown
from exitkit.data.columns import TAGS, USUAL, WORDS, Columns, LabelUse, find_columns
from exitkit.data.kinds import Kind, is_list
from exitkit.data.tables import Piece, Table
from exitkit.data.targets import Targets, any_label, targets, words
from exitkit.errors import ExitkitError, UsageError
from exitkit.tasks import Tagging, Task
from exitkit.tasks.tags import words_in

__all__ = ["LabelUse", "Origin", "Rows", "Source", "labelled", "read", "read_from", "reread", "splits"]


@dataclass(frozen=True)
class Origin:
    """Where rows come from, so that the same rows can be read again."""

    source: str
    split: str  # as it was asked for: a name or any slice
    revision: str | None  # commit of a hub dataset, where known
    columns: Columns
    indices: tuple[int, ...] | None = None  # positions among the rows of `split`; None = all of them

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for YAML."""
        indices = None if self.indices is None else list(self.indices)
        return vars(self) | {"columns": self.columns.as_dict(), "indices": indices}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Origin:
        """The inverse of `as_dict`; what else stands beside it in a file does not matter."""
        indices = None if plain["indices"] is None else tuple(plain["indices"])
        columns = Columns.from_dict(plain["columns"])
        return cls(plain["source"], plain["split"], plain["revision"], columns, indices)


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts or pairs, with or without labels, checked: no null text, every label known."""

    data: datasets.Dataset  # columns text, text_pair (pairs only), words (tagging only, where given),
    # label (labelled only, as the task stores it), group (only where asked for)
    task: Task | None  # None: the rows have no labels
    origin: Origin
    kind: Kind | None = None  # how the task was seen from the labels; None where it was known, or words have tags

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in order of their numbers; empty without labels and in regression."""
        return self.task.labels if self.task else ()

    @property
    def pair(self) -> bool:
        """Whether a row is two texts."""
        return "text_pair" in self.data.column_names

    def __len__(self) -> int:
        return len(self.data)

    def select(self, indices: Sequence[int]) -> Rows:
        """The rows at `indices`, in that order; the origin follows."""
        chosen = [int(i) for i in indices]
        before = self.origin.indices
        kept = tuple(chosen if before is None else (before[i] for i in chosen))
        return replace(self, data=self.data.select(chosen), origin=replace(self.origin, indices=kept))

    def hash(self) -> str:
        """16 hex digits over texts and label names, in order: the same on every machine and for every file
        format.
        """
        digest = hashlib.sha256()
        for batch in self.data.iter(1000):
            names = [self.task.spelled(label).encode() for label in batch["label"]] if self.task else []
            fields = [[text.encode() for text in batch[name]] for name in ("text", "text_pair") if name in batch]
            if "words" in batch:
                fields = [["\n".join(words).encode() for words in batch["words"]]]
            for row in zip(*fields, *([names] if names else []), strict=True):
                # Lengths go in too, so that moving a character to the next field changes the hash.
                digest.update(b"".join(b"%d:%b" % (len(field), field) for field in row) + b"\n")
        return digest.hexdigest()[:16]


def splits(source: Source) -> dict[str, int]:
    """Names of the splits and their row counts."""
    return {name: table().rows for name, table in catalogue(source).tables.items()}


def read(
    source: Source,
    split: str | None = None,
    columns: Columns = USUAL,
    task: Task | str | None = None,
    *,
    use_labels: LabelUse = "needed",
) -> Rows:
    """Read rows.

    `split` is a name or any `datasets` slice, such as `validation[:50%]` or `train[:10%]+train[-10%:]`; it
    may be left out when there is only one. `task` is that of a trained model, to whose labels the rows' are
    mapped; or the name of a kind of task; without, it is seen from the labels, and the classes are those of
    the whole splits named, also when a slice has fewer.

    Raises UsageError: no such source, split, column or label.
    Raises ExitkitError: the data are damaged, empty or have gaps.
    """
    return read_from(catalogue(source), split, columns, task, use_labels)


def reread(origin: Origin, task: Task, expected_hash: str) -> Rows:
    """Read again the rows that `origin` describes.

    Raises ExitkitError: they were in memory, are gone, or are not the same any more.
    """
    what = f"the rows used before (split '{origin.split}' of {origin.source})"
    ask = "Give the data with --data and --split."
    if origin.source == IN_MEMORY:
        raise ExitkitError(f"{what} were in memory and cannot be read again. {ask}")
    use: LabelUse = "needed" if origin.columns.label else "ignored"
    try:
        rows = read_from(catalogue(origin.source, origin.revision), origin.split, origin.columns, task, use)
        rows = rows if origin.indices is None else rows.select(origin.indices)
    except IndexError:
        raise ExitkitError(f"{what} have changed: there are fewer rows now. {ask}") from None
    except ExitkitError as error:
        raise ExitkitError(f"{what} cannot be read again: {error} {ask}") from error
    found = rows.hash()
    if found != expected_hash:
        raise ExitkitError(f"{what} have changed (content hash {found}, expected {expected_hash}). {ask}")
    return rows


def read_from(
    found: Catalogue,
    split: str | None,
    columns: Columns,
    task: Task | str | None,
    use_labels: LabelUse = "needed",
) -> Rows:
    """`read`, for a source that has been found already."""
    split = split or only_split(found)
    pieces = _pieces(found, split)
    kind = task.kind if isinstance(task, Task) else task
    picked = _pick(pieces, columns, use_labels, kind)
    if kind is None and _tags_words(pieces, picked):
        task = kind = Tagging.kind
    if kind == Tagging.kind and picked.text_pair:
        raise UsageError("tagging takes one text per row, not pairs; say which column with --text-column.")
    if kind == Tagging.kind:
        in_words = picked.label is not None or str(picked.text).lower() in WORDS or _holds_lists(pieces, picked.text)
        data = _words(pieces, picked.text) if in_words else _words_of_texts(_texts(pieces, picked.text))
    else:
        data = {"text": _texts(pieces, picked.text)}
    if picked.text_pair:
        data["text_pair"] = _texts(pieces, picked.text_pair)
    if picked.group:
        data["group"] = _groups(pieces, picked.group)
    known = seen = None
    if picked.label:
        read_labels = targets(pieces, picked.label, task)
        if _complete(pieces, read_labels, use_labels):
            values = np.concatenate(read_labels.values)
            if "words" in data:
                _check_lengths(pieces, data["words"], values)
            data["label"] = _arrow(values)
            known, seen = read_labels.task, read_labels.kind
        else:
            picked = replace(picked, label=None)
    origin = Origin(found.source, split, found.revision, picked)
    return Rows(datasets.Dataset(pa.table(data)), known, origin, seen)


def labelled(found: Catalogue, split: str, columns: Columns) -> bool:
    """Whether the split is there and any row of it has a label: benchmarks keep the labels of tests back."""
    if split not in found.tables:
        return False
    table = found.table(split)
    name = find_columns(_names(table, columns), columns, "optional").label
    return name is not None and any_label(table, name)


def only_split(found: Catalogue) -> str:
    """The name of the split where there is one. Raises UsageError: there are several."""
    if len(found.tables) > 1:
        raise UsageError(f"{found.source} has the splits {', '.join(found.tables)}. Say which with --split.")
    return next(iter(found.tables))


def _pieces(found: Catalogue, split: str) -> list[Piece]:
    names = [match[1] for match in (re.match(r"\s*([\w.]+)", part) for part in split.split("+")) if match]
    tables = {name: found.table(name) for name in names}
    sizes = {name: table.rows for name, table in tables.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise UsageError(
            f"--split '{split}' cannot be understood ({error}). Allowed: a name or a slice, such as "
            "validation, validation[:50%], train[10:200], train[:10%]+train[-10%:]."
        ) from error
    pieces = [
        Piece(tables[part.splitname], part.from_, part.to, f"split '{part.splitname}' of {found.source}")
        for part in parts
        if part.to > part.from_
    ]
    if not pieces:
        have = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ExitkitError(f"--split '{split}' of {found.source} has no rows ({have}). Give data with rows.")
    return pieces


def _pick(pieces: Sequence[Piece], columns: Columns, use_labels: LabelUse, kind: str | None) -> Columns:
    answers = {_found(piece, columns, use_labels, kind) for piece in pieces}
    if len(answers) > 1:
        raise UsageError(f"the splits asked for have different columns: {' and '.join(map(str, answers))}.")
    return answers.pop()


def _found(piece: Piece, columns: Columns, use_labels: LabelUse, kind: str | None) -> Columns:
    try:
        return find_columns(_names(piece.table, columns), columns, use_labels, kind)
    except UsageError as error:
        raise UsageError(f"{piece.origin}: {error}") from None


def _names(table: Table, columns: Columns) -> list[str]:
    """The columns of a table, and what is asked for that lies inside them or joins them."""
    asked = (columns.text, columns.text_pair, columns.label, columns.group)
    return [*table.names, *(name for name in asked if name and name not in table.names and table.known(name))]


def _tags_words(pieces: Sequence[Piece], picked: Columns) -> bool:
    """Whether the columns found hold words and their tags."""
    if picked.label is None or picked.text_pair is not None:
        return False
    return picked.label.lower() in TAGS or (_holds_lists(pieces, picked.text) and _holds_lists(pieces, picked.label))


def _holds_lists(pieces: Sequence[Piece], name: str | None) -> bool:
    return name is not None and all(is_list(piece.table.column(name).type) for piece in pieces)


def _words(pieces: Sequence[Piece], name: str | None) -> dict[str, pa.ChunkedArray]:
    """The words of every row, and for people and comparisons the words with blanks between as `text`."""
    assert name is not None
    chunks: list[pa.Array] = []
    for piece in pieces:
        column = words(piece, name, piece.table.column(name)).slice(piece.start, piece.stop - piece.start)
        if column.null_count:
            row = pc.index(pc.is_null(column), pa.scalar(True)).as_py()
            raise ExitkitError(f"{piece.row(row)}: column '{name}' has no words. Fill or drop such rows.")
        if pa.types.is_null(column.type.value_type):  # empty lists only
            column = column.cast(pa.list_(pa.string()))
        if pc.list_flatten(column).null_count:
            row = next(n for n, one in enumerate(column.to_pylist()) if None in one)
            raise ExitkitError(f"{piece.row(row)}: a word in column '{name}' is missing. Fill or drop it.")
        if not pa.types.is_string(column.type.value_type):
            raise UsageError(f"column '{name}' of {piece.origin} holds {shown(column.type)}, not lists of words.")
        chunks += column.chunks
    found = pa.chunked_array(chunks, pa.list_(pa.string()))
    return {"text": pc.binary_join(found, " ").cast(pa.large_string()), "words": found}


def _words_of_texts(texts: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """Raw texts and their words."""
    words = [[text[start:end] for start, end in words_in(text)] for text in texts.to_pylist()]
    return {"text": texts, "words": pa.chunked_array([pa.array(words, pa.list_(pa.string()))])}


def _check_lengths(pieces: Sequence[Piece], found: pa.ChunkedArray, values: npt.NDArray[Any]) -> None:
    """Raise UsageError for a row with more words than tags, or fewer."""
    counts = pc.list_value_length(found).to_numpy()
    tags = np.array([len(row) for row in values])
    if (counts == tags).all():
        return
    place = row = int((counts != tags).argmax())
    for piece in pieces:
        if row < piece.stop - piece.start:
            raise UsageError(f"{piece.row(row)}: {counts[place]} words, but {tags[place]} tags.")
        row -= piece.stop - piece.start


def _texts(pieces: Sequence[Piece], name: str | None) -> pa.ChunkedArray:
    assert name is not None, "find_columns always finds a text"
    return pa.chunked_array([chunk for piece in pieces for chunk in _text(piece, name).chunks], pa.large_string())


def _text(piece: Piece, name: str) -> pa.ChunkedArray:
    column = piece.table.column(name).slice(piece.start, piece.stop - piece.start)
    if column.null_count:
        row = pc.index(pc.is_null(column), pa.scalar(True)).as_py()
        raise ExitkitError(f"{piece.row(row)}: column '{name}' has no text. Fill or drop such rows.")
    if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):  # words
        column = pc.binary_join(column, " ")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UsageError(
            f"column '{name}' of {piece.origin} holds {shown(column.type)}, not text. Say which column with "
            "--text-column."
        )
    return column.cast(pa.large_string())  # 32-bit offsets end at 2 GB of text


def _groups(pieces: Sequence[Piece], name: str) -> pa.ChunkedArray:
    """Any column as strings; a missing value is a group of its own."""
    columns = [piece.table.column(name).slice(piece.start, piece.stop - piece.start) for piece in pieces]
    try:
        texts = [column.cast(pa.large_string()).fill_null("(none)") for column in columns]
    except pa.ArrowException:
        raise UsageError(
            f"--group-column '{name}' holds {shown(columns[0].type)}; it must hold strings or numbers."
        ) from None
    return pa.chunked_array([chunk for column in texts for chunk in column.chunks], pa.large_string())


def _complete(pieces: Sequence[Piece], found: Targets, use_labels: LabelUse) -> bool:
    """Whether every row has a label.

    Raises ExitkitError: labels are needed, and some rows lack one.
    """
    missing = list(zip(pieces, found.gaps, strict=True))
    if not any(gaps.any() for _, gaps in missing):
        return True
    if use_labels == "optional":
        return False
    if all(gaps.all() for _, gaps in missing):
        raise UsageError(
            f"{pieces[0].origin} has no labels (every one is missing or -1, as where a benchmark keeps them "
            "back). Give a labelled split with --split."
        )
    piece, gaps = next((piece, gaps) for piece, gaps in missing if gaps.any())
    known = f" Known: {', '.join(found.task.labels)}." if found.task.labels else ""
    raise ExitkitError(f"{piece.row(int(gaps.argmax()))} has no label.{known} Fill or drop such rows.")


def _arrow(values: npt.NDArray[Any]) -> pa.Array:
    """[N] as numbers, [N, C] and sentences as lists."""
    if values.dtype == object:
        return pa.array(values.tolist(), pa.list_(pa.int32()))
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]).cast(pa.list_(pa.int8()))
