"""Which rows are trained on, calibrated on and scored on."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exitkit.data import aside
from exitkit.data.catalogue import Catalogue, Source, catalogue
from exitkit.data.columns import USUAL, Columns, LabelUse
from exitkit.data.fingerprints import Hashes, hashed
from exitkit.data.sources import Rows, labelled, read_from
from exitkit.errors import UsageError
from exitkit.tasks import Answers, Classification, MultiLabel, Tagging, Task
from exitkit.tasks.tags import LEFT_OUT, sentences

log = logging.getLogger("exitkit")

SET_ASIDE = 0.1
MOST_SET_ASIDE = 2000
FEWEST_ROWS = 10
MOST_LACKING = 0.1
"""The share of rows with frequent texts that may be missing among those set aside before it is told."""
FEWEST_LACKING = 5
"""Rows that must be missing: of a few rows set aside one makes up a tenth."""


@dataclass(frozen=True)
class TrainingData:
    """What `train` needs. No row of `calibration` or `evaluation` has the text of a row of `train`, unless
    the source's own splits overlap.
    """

    train: Rows
    calibration: Rows
    evaluation: Rows  # what metrics.json scores; its `origin` says which rows these are
    task: Task


def training_and_calibration(
    source: Source,
    columns: Columns = USUAL,
    seed: int = 0,
    max_train_samples: int | None = None,
    task: Task | str | None = None,
    use_labels: LabelUse = "needed",
) -> TrainingData:
    """Read the rows to train on, and choose those to calibrate and to evaluate on.

    Calibration rows are the `validation` split when a labelled `test` split is left to score on; else a
    tenth of `train`, at most 2,000 rows, stratified where every class has two rows, chosen before
    `max_train_samples`; all copies of a text are on one side, see `aside.part`. Evaluation rows are `validation`
    where labelled, else the calibration rows. `task` is a task or its kind; None = seen from the labels.

    Where labels are not needed, `task` says what they would be, and splits without labels serve as well.

    Raises UsageError: no `train` split, or too little in it.
    """
    if max_train_samples is not None and max_train_samples < 2:
        raise UsageError(f"--max-train-samples is {max_train_samples}; it must be 2 or more.")
    found = catalogue(source)
    train = read_from(found, "train", columns, task, use_labels)
    _check_enough(train, use_labels == "needed")
    known = train.task or task
    assert isinstance(known, Task), "without labels the task must be given"

    def there(split: str) -> bool:
        return split in found.tables if train.task is None else labelled(found, split, columns)

    use = "needed" if train.task is not None else use_labels
    validation = read_from(found, "validation", columns, known, use) if there("validation") else None
    if validation is None and "validation" in found.tables:
        log.warning("split 'validation' of %s has no labels, and is not used: %s", found.source, _columns(found))
    if validation is not None and there("test"):
        calibration = validation
    else:
        train, calibration = _set_aside(train, seed)
    if max_train_samples is not None and max_train_samples < len(train):
        chosen = np.random.default_rng(seed).choice(len(train), max_train_samples, replace=False)
        train = train.select(np.sort(chosen).tolist())
    _check_classes(train, use_labels == "needed")
    evaluation = calibration if validation is None else validation
    return TrainingData(train, calibration, evaluation, known)


def _columns(found: Catalogue) -> str:
    """The columns of the splits to train and to validate on."""
    shown = (f"{split} has {', '.join(found.table(split).names[:10])}" for split in ("train", "validation"))
    return "; ".join(shown)


def scoring_split(source: Source, columns: Columns = USUAL) -> str:
    """The split to score on when nobody says: `test` where it is labelled, else `validation`.

    Raises UsageError: there is neither.
    """
    found = catalogue(source)
    for split in ("test", "validation"):
        if labelled(found, split, columns):
            return split
    raise UsageError(
        f"{found.source} has no labelled test or validation split to score on. Splits there are: "
        f"{', '.join(found.tables)}. Give labelled rows of another file with --data FILE --split train, or say which "
        "split with --split; rows that the model was trained or calibrated on are refused."
    )


def _check_enough(train: Rows, by_labels: bool) -> None:
    if len(train) < FEWEST_ROWS:
        raise UsageError(
            f"{train.origin.source} has {len(train)} rows to train on; at least {FEWEST_ROWS} are needed. "
            "Give more data."
        )
    _check_classes(train, by_labels)


def _check_classes(train: Rows, by_labels: bool) -> None:
    """Raise UsageError where labels are all there is to learn from, and are all alike."""
    if train.task is None:
        return
    where = f"the {len(train)} rows to train on from {train.origin.source}"
    more = "Give other data, or a larger --max-train-samples where that is set."
    labels = label_array(train)
    if isinstance(train.task, Tagging):
        labels = np.concatenate(labels)
        if not len(labels):
            raise UsageError(f"{where} have no words. {more}")
    if not by_labels:
        return
    if isinstance(train.task, Classification) and len(np.unique(labels)) < 2:
        raise UsageError(
            f"{where} all have the label '{train.labels[labels[0]]}'; at least two classes are needed. {more}"
        )
    if isinstance(train.task, MultiLabel) and not labels.any():
        raise UsageError(f"{where} have no label at all. {more}")
    if labels.ndim == 1 and labels.dtype.kind == "f" and np.ptp(labels) == 0:
        raise UsageError(f"{where} all have the label {labels[0]:g}; there is nothing to learn. {more}")


def label_array(rows: Rows) -> Answers:
    """The labels of labelled rows as their task stores them: [N], [N, C] in multi-label, [N] sentences in tagging,
    without the words that are left out.
    """
    if isinstance(rows.task, Tagging):
        return sentences([tag for tag in row if tag != LEFT_OUT] for row in rows.data["label"][:])
    labels: Answers = np.asarray(rows.data["label"][:])
    return labels


def _set_aside(train: Rows, seed: int) -> tuple[Rows, Rows]:
    """What is left to train on, and the rows set aside."""
    size = min(MOST_SET_ASIDE, max(1, round(SET_ASIDE * len(train))))
    stratify = None
    if isinstance(train.task, Classification) and not isinstance(train.task, Tagging):
        ids = label_array(train)
        counts = np.bincount(ids)
        counts = counts[counts > 0]
        # scikit-learn refuses to stratify beyond these bounds.
        stratify = ids if counts.min() >= 2 and size >= len(counts) else None
    known: dict[tuple[str, ...], int] = {}
    numbers = np.array([known.setdefault(text, len(known)) for text in texts(train)])
    parted = aside.part(numbers, stratify, size, seed)
    if not len(parted.aside) and stratify is not None:
        parted = aside.part(numbers, None, size, seed)
    if not len(parted.aside):
        raise UsageError(
            f"no rows can be set aside from the {len(train)} training rows of {train.origin.source} for calibration: "
            f"they have only {len(known)} different text{'s' if len(known) > 1 else ''}, each of which is needed to "
            "train on. Give more texts, or add validation and test splits."
        )
    if len(known) < len(train):
        _tell(train, numbers, parted)
    return train.select(parted.kept.tolist()), train.select(parted.aside.tolist())


def _tell(train: Rows, numbers: npt.NDArray[np.int64], parted: aside.Parted) -> None:
    """Say what was set aside of rows whose texts repeat, and warn where that is no sample of them."""
    unused = len(train) - len(parted.kept) - len(parted.aside)
    log.info(
        "set aside for calibration: %d of %d rows, with %d of %d different texts; no text is on both sides%s",
        len(parted.aside),
        len(train),
        len(np.unique(numbers[parted.aside])),
        len(np.unique(numbers)),
        f". {unused} more copies of frequent texts among them are used on neither" if unused else "",
    )
    gap = aside.gap(numbers, parted.aside)
    if gap.lacking > MOST_LACKING and gap.lacking * len(parted.aside) >= FEWEST_LACKING:
        log.warning(
            "%.0f %% of the training rows are texts that stand there %d times or more, but %.0f %% of those set aside "
            "for calibration are texts nearly as frequent (%d times or more): there are too few to have some on both "
            "sides. Calibrate with --data on rows that look like the traffic, frequent texts and all",
            100 * gap.all,
            gap.copies,
            100 * gap.aside,
            gap.nearly,
        )


def texts(rows: Rows) -> list[tuple[str, ...]]:
    """Each row's text or pair, to compare rows by; in tagging its words, which may come from a raw text.

    Blanks are one blank, and there are none at the ends; accents are part of their letters (NFC). Case tells apart.
    """
    if "words" in rows.data.column_names:
        return [tuple(map(_plain, words)) for words in rows.data["words"][:]]
    names = ["text", "text_pair"] if rows.pair else ["text"]
    return list(zip(*(map(_plain, rows.data[name][:]) for name in names), strict=True))


@dataclass(frozen=True, eq=False)
class Taken:
    """Texts that rows must not have."""

    hashes: Hashes
    why: str  # after a number of rows: "are among the training rows"


def free(rows: Rows, taken: Sequence[Taken], what: str, instead: str) -> npt.NDArray[np.int64]:
    """Positions of the rows whose text is not taken; how many are is told.

    Args:
        rows: to look through.
        taken: what they must not be.
        what: they are for ("to score").
        instead: what to do where too few are left, a sentence.

    Raises UsageError: these are the lesser part of the rows.
    """
    own = hashed(texts(rows))
    ours = [np.isin(own, one.hashes) for one in taken]
    out = np.logical_or.reduce(ours) if ours else np.zeros(len(rows), dtype=bool)
    counts = [
        f"{mask.sum()} of the {len(rows)} rows {what} {one.why}"
        for mask, one in zip(ours, taken, strict=True)
        if mask.any()
    ]
    if 2 * out.sum() > len(rows):
        raise UsageError(
            f"{' and '.join(counts)}, so scores would flatter (split '{rows.origin.split}' of {rows.origin.source}). "
            f"{instead}"
        )
    if out.any():
        log.warning("%s and are left out", " and ".join(counts))
    return np.flatnonzero(~out)


def without(rows: Rows, taken: Sequence[Taken], what: str, instead: str) -> Rows:
    """The rows whose text is not taken, see `free`."""
    left = free(rows, taken, what, instead)
    return rows if len(left) == len(rows) else rows.select(left.tolist())


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
