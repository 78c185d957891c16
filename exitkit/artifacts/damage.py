"""What is said where a file cannot be read: which one it is, and not a file at all where the machine is at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from exitkit.errors import ExitkitError, ShortageError, shortage

TOKENIZER = "tokenizer.json"
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@contextmanager
def told(folder: Path, at_fault: Callable[[], Path]) -> Iterator[None]:
    """Turn whatever libraries raise about the files of a folder into a message that names one of them.

    `at_fault` finds out which, and is asked only then. Libraries raise anything: tokenizers a plain Exception.

    Raises ExitkitError: the file is damaged; or memory or threads have run out, which is no file's fault.
    """
    try:
        yield
    except ExitkitError:
        raise
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        if short := shortage(error, "end other programs, or raise the limits of this process"):
            raise ShortageError(f"{folder} cannot be loaded here: {short}") from error
        raise ExitkitError(f"{at_fault()} cannot be read: {what[:MOST]}") from error


MOST = 500
"""Characters of somebody else's message."""


def of_tokenizer(folder: Path) -> Path:
    """The file of a tokenizer that cannot be read; where all can, the one that says what to make of them."""
    for name in TOKENIZER_SETTINGS:
        if (folder / name).exists() and not _is_object(folder / name):
            return folder / name
    if (folder / TOKENIZER).exists():
        try:
            Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception:  # tokenizers has no exceptions of its own
            return folder / TOKENIZER
    settings = folder / TOKENIZER_SETTINGS[0]
    return settings if settings.exists() else folder


def _is_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False
