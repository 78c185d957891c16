"""What may be asked: texts, pairs or words as Python gives them, checked, and in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np

from exitkit.data.flaws import Flaw
from exitkit.errors import ExitkitError, UsageError
from exitkit.prediction.lines import text_of

Text = str | tuple[str, str] | list[str]
"""A text, a pair of texts (a tuple, or a list where the model takes pairs), or the words of one text (a list)."""


def checked(texts: Sequence[Text], pairs: bool, in_words: bool, column: str) -> Sequence[Text]:
    """Texts as the model takes them; words joined, unless they are to be answered. Raises UsageError for others.

    `column` is what a table's texts are probably called.
    """
    if isinstance(texts, str):
        raise UsageError("predict takes a list of texts; for a single one write predict([text]).")
    named = list(texts) if isinstance(texts, Mapping) else _columns_of(texts)
    if named is not None:
        names = [str(name) for name in named]
        name = column if column in names or not names else names[0]
        pair = " For pairs, zip(table[A], table[B])." if pairs else ""
        raise UsageError(
            f"predict takes a list of texts, not a {type(texts).__name__}: iterating it gives its column names. Give a "
            f'column of it, such as table["{name}"] (it has {", ".join(names) or "none"}).{pair}'
        )
    try:
        given = iter(texts)
    except TypeError:  # numbers, None, paths, arrays without a dimension
        raise UsageError(f"predict takes a list of texts, not {_shown(texts)}.") from None
    found: list[Text] = []
    for number, text in enumerate(given):
        strings = isinstance(text, tuple | list) and all(isinstance(part, str) for part in text)
        for part in text if strings else [text] if isinstance(text, str) else ():
            _must_be_unicode(part, number)
        if isinstance(text, str) and not pairs:
            found.append(text)
        elif strings and pairs and len(text) == 2:
            found.append((text[0], text[1]))
        elif strings and isinstance(text, list) and not pairs:
            found.append(list(text) if in_words else " ".join(text))
        else:
            wanted = "a pair of strings, as this model takes" if pairs else "a string or a list of words"
            raise UsageError(f"text {number} is {_shown(text)}, not {wanted}.")
    return found


def _columns_of(table: object) -> list[object] | None:
    """The columns of a DataFrame or a Dataset; None for anything else."""
    for known in ("column_names", "columns"):
        names = getattr(table, known, None)
        if names is not None:
            return list(names)
    return None


def _must_be_unicode(text: str, number: int) -> None:
    """Raise UsageError for half a surrogate pair, which no tokenizer takes."""
    try:
        text_of(text, f"text {number}")
    except Flaw as flaw:
        raise UsageError(f"{flaw}; leave it out or put U+FFFD in its place.") from None


def _shown(text: object) -> str:
    if isinstance(text, str):
        return "a single text"
    if isinstance(text, tuple | list):
        return f"a {type(text).__name__} of {len(text)}"
    return type(text).__name__


def size_of(batch_size: object) -> int:
    """A batch size, checked."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}; it must be a whole number, 1 or more.")
    return int(batch_size)


class AfterRest(Exception):
    """A bad line, raised once the good lines before it have been handed on."""


def chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size`. What came before an error is handed on before it is raised."""
    while True:
        chunk: list[Any] = []
        failed: AfterRest | None = None
        try:
            for item in islice(items, size):
                chunk.append(item)
        except AfterRest as error:
            failed = error
        if chunk:
            yield chunk
        if failed is not None:
            raise cast(ExitkitError, failed.args[0])
        if len(chunk) < size:
            return
