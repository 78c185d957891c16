"""Where a run's rows leave and what it gets right, part by part, and which answers it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from exitkit.data.sources import Rows
from exitkit.measuring.runs import Words
from exitkit.tasks import Answers, Task

MOST_SHOWN = 100
MOST_GROUPS = 30
LENGTHS = (0.25, 0.5, 0.75)  # quantiles between which rows count as alike


@dataclass(frozen=True)
class Judged:
    """The rows of a benchmark and what the full model says of them."""

    rows: Rows
    task: Task
    lengths: npt.NDArray[np.int64]  # [N] tokens of each row
    row_full: Answers  # the full model's, row by row
    row_truth: Answers | None  # labels, row by row
    words: Words | None = None  # in tagging

    @property
    def row(self) -> npt.NDArray[np.int64]:
        """[U] the row of each unit."""
        return np.arange(len(self.lengths)) if self.words is None else self.words.row

    def by_unit(self, answers: Answers) -> Answers:
        """[U] answers of rows, unit by unit."""
        return answers if self.words is None else self.words.of_units(answers)

    @cached_property
    def full(self) -> Answers:
        """[U] the full model's answers."""
        return self.by_unit(self.row_full)

    @cached_property
    def truth(self) -> Answers | None:
        """[U] labels."""
        return None if self.row_truth is None else self.by_unit(self.row_truth)

    @property
    def reference(self) -> Answers:
        """[U] what answers are compared with: labels, or the full model where there are none."""
        return self.full if self.truth is None else self.truth


def breakdown(judged: Judged, answers: Answers, taken: npt.NDArray[np.int64], exits: int) -> dict[str, Any]:
    """Share by exit and score of every part of the rows.

    Args:
        judged: the rows.
        answers: of the run, row by row.
        taken: [U] exit of each unit, from 1.
        exits: E.

    Returns:
        `measure` (what the scores are), `by_exit`, `by_class`, `by_length`, `by_group` (lists of parts with rows,
        share of the rows per exit, score and the full model's score) and `changed`.
    """
    task = judged.task
    answers = judged.by_unit(answers)
    mine, full = (task.unit_scores(judged.reference, given) for given in (answers, judged.full))

    def part(name: str, rows: npt.NDArray[np.bool_]) -> dict[str, Any]:
        left = np.bincount(taken[rows], minlength=exits + 1)[1:]
        return {
            "name": name,
            "rows": int(rows.sum()),
            "exits": [int(count) for count in left],
            "score": float(mine[rows].mean()),
            "full_score": float(full[rows].mean()),
        }

    def parts(masks: Mapping[str, npt.NDArray[np.bool_]]) -> list[dict[str, Any]]:
        return [part(name, rows) for name, rows in masks.items() if rows.any()]

    kind = "mean absolute error" if task.kind == "regression" else "share right"
    return {
        "measure": kind if judged.truth is not None else kind.replace("right", "equal to the full model"),
        "by_exit": parts({f"exit {exit}": taken == exit for exit in range(1, exits + 1)}),
        "by_class": parts(_classes(judged)),
        "by_length": parts(_lengths(judged.lengths[judged.row])),
        "by_group": parts(_groups(judged)),
        "changed": changed(judged, answers, taken),
    }


def changed(judged: Judged, answers: Answers, taken: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The units that the run answers otherwise than the full model; at most `MOST_SHOWN` are shown, spread evenly.

    In regression, the rows with the largest differences. `answers` is unit by unit.
    """
    task, truth = judged.task, judged.truth
    if task.kind == "regression":
        rows = np.argsort(-np.abs(answers - judged.full), kind="stable")[:MOST_SHOWN]
        total = int((answers != judged.full).sum())
    else:
        differs = answers != judged.full
        rows = np.flatnonzero(differs if differs.ndim == 1 else differs.any(axis=1))
        total = len(rows)
    found: dict[str, Any] = {"rows": total, "became_wrong": None, "became_right": None}
    if truth is not None and task.kind != "regression":
        mine, full = (task.unit_scores(truth[rows], given[rows]) for given in (answers, judged.full))
        found["became_wrong"], found["became_right"] = int((mine < full).sum()), int((mine > full).sum())
    shown = rows if len(rows) <= MOST_SHOWN else rows[np.linspace(0, len(rows) - 1, MOST_SHOWN).astype(int)]
    found["shown"] = [
        {
            **_context(judged, int(row)),
            "full": _spelled(task, judged.full[row]),
            "answer": _spelled(task, answers[row]),
            "truth": None if truth is None else _spelled(task, truth[row]),
            "exit": int(taken[row]),
        }
        for row in shown
    ]
    return found


def _context(judged: Judged, unit: int) -> dict[str, Any]:
    """The row of a unit, and in tagging which word it is."""
    row = int(judged.row[unit])
    data, words = judged.rows.data[row], judged.words
    found = {"row": row, "text": data["text"], **({"text_pair": data["text_pair"]} if judged.rows.pair else {})}
    if words is not None:
        number = int(words.number[unit])
        found["word"] = data["words"][number] if "words" in data else number
    return found


def _spelled(task: Task, answer: Any) -> str:
    return f"{answer:.3g}" if task.kind == "regression" else task.spelled(answer).replace("\n", ", ") or "(none)"


def _classes(judged: Judged) -> dict[str, npt.NDArray[np.bool_]]:
    """Rows by the class that they have, or that the full model gives them."""
    labels = judged.task.labels
    if judged.reference.ndim == 2:
        return {name: judged.reference[:, number].astype(bool) for number, name in enumerate(labels)}
    return {name: judged.reference == number for number, name in enumerate(labels[:MOST_GROUPS])}


def _lengths(lengths: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    edges = [int(edge) for edge in np.unique(np.quantile(lengths, LENGTHS).astype(int))]
    bounds: Sequence[tuple[int, int]] = list(zip([0, *edges], [*edges, int(lengths.max())], strict=True))
    return {
        f"{max(low + 1, int(lengths.min()))} to {high} tokens": (lengths > low) & (lengths <= high)
        for low, high in bounds
    }


def _groups(judged: Judged) -> dict[str, npt.NDArray[np.bool_]]:
    data = judged.rows.data
    if "group" not in data.column_names:
        return {}
    names = np.asarray(data["group"][:])[judged.row]
    known, counts = np.unique(names, return_counts=True)
    most = sorted(known[np.argsort(-counts)][:MOST_GROUPS].tolist())
    return {str(name): names == name for name in most}
