"""What stdin holds, seen from its first line: the rest may not have been written yet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain

from exitkit.data import json_rows
from exitkit.data.columns import LABELS, SINGLES, TAGS
from exitkit.data.delimited import DELIMITERS, header_fields
from exitkit.data.fields import paths
from exitkit.errors import UsageError
from exitkit.prediction.text_columns import Wanted

log = logging.getLogger("exitkit")

SAY = "say which with --input-format"
USUAL_TEXTS = frozenset(chain.from_iterable(SINGLES))
USUAL_LABELS = frozenset((*LABELS, *TAGS))
LONGEST_NAME = 60  # characters of a column's name


def format_of(first: bytes, wanted: Wanted) -> str:
    """The format of what begins with the line `first`: "jsonl", "csv" or "lines".

    An object is jsonl. A header is csv, with a warning: several fields that look like names, among them the columns
    asked for, those of the training data, or a usual one for texts beside a usual one for labels. Anything else is
    plain text.

    Raises UsageError for what may be a header or not, so that none is answered as if it were a text, and for a list of
    objects.
    """
    if first.lstrip().startswith(b"{"):
        return "jsonl"
    if json_rows.is_list(first, "jsonl") or first.strip() == b"[":
        raise UsageError(f"the first line begins a JSON list; {SAY} json (one list) or lines (plain text)")
    line = first.decode(errors="replace").strip("\r\n")
    if len(line) > len(DELIMITERS) * LONGEST_NAME * 10:
        return "lines"
    for delimiter in DELIMITERS:
        names = header_fields(line, delimiter)
        if len(names) > 1 and _is_header(names, wanted):
            log.warning(
                "stdin is read as csv, since its first line, '%s', names its columns; if that is a text to answer, "
                "give --input-format lines",
                line,
            )
            return "csv"
        if _may_be_header(names, wanted):
            raise UsageError(
                f"the first line, '{line[:80]}', may be the header of a table or a text; {SAY} csv or lines"
            )
    return "lines"


def _is_header(names: Sequence[str], wanted: Wanted) -> bool:
    if not all(name == name.strip() and len(name) <= LONGEST_NAME for name in names):
        return False
    if wanted.text is not None:
        return bool(paths(wanted.text, names))
    small = {name.lower() for name in names}
    return _as_trained(names, wanted) or bool(small & USUAL_TEXTS and small & USUAL_LABELS)


def _may_be_header(names: Sequence[str], wanted: Wanted) -> bool:
    names = [name.strip() for name in names]
    return _as_trained(names, wanted) or (len(names) > 1 and any(name.lower() in USUAL_TEXTS for name in names))


def _as_trained(names: Sequence[str], wanted: Wanted) -> bool:
    """Whether the columns of the training data are among the names."""
    return wanted.trained_on is not None and all(
        column is None or bool(paths(column, names)) for column in wanted.trained_on
    )
