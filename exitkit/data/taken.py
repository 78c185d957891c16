"""What rows were taken to be labelled with, in one line for people."""

from __future__ import annotations

from collections.abc import Sequence

from exitkit.data.kinds import Kind
from exitkit.data.sources import Rows
from exitkit.data.splits import label_array
from exitkit.tasks import Regression, Tagging
from exitkit.tasks.tags import scheme_told

MOST_NAMED = 8
LONGEST_NAME = 30


def taken(rows: Rows, reason: str | None = None) -> str:
    """The task of labelled rows, its classes or values, what it was seen from, and the flag that changes it.

    `reason` says why, where the task was not seen from the labels.
    """
    if reason:
        return f"{_task(rows)}, {reason}"
    seen = rows.kind or Kind(Tagging.kind, "words have tags")
    because = f", because {seen.because}" if seen.because else ""
    return f"{_task(rows)}{because}; {seen.otherwise}"


def _task(rows: Rows) -> str:
    task = rows.task
    assert task is not None, "only rows with labels are labelled with something"
    if isinstance(task, Regression):
        values = label_array(rows)
        return f"regression, values from {values.min():g} to {values.max():g}"
    if isinstance(task, Tagging):
        return f"tagging, {_named(task.labels, 'tag', 'tags')}, {scheme_told(task.scheme)}"
    return f"{task.kind}, {_named(task.labels, 'class', 'classes')}"


def _named(names: Sequence[str], one: str, several: str) -> str:
    """How many there are, and the first of them."""
    shown = [name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "…" for name in names[:MOST_NAMED]]
    more = ", …" if len(names) > MOST_NAMED else ""
    return f"{len(names)} {one if len(names) == 1 else several} ({', '.join(shown)}{more})"
