"""Standard output belongs to what a command answers. Whatever else prints while it runs is shown on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from exitkit.errors import ExitkitError
from exitkit.process.outputs import why

_kept: TextIO | None = None


def real() -> TextIO:
    """Where answers go: standard output as the command found it."""
    return sys.stdout if _kept is None else _kept


def write(text: bytes) -> None:
    """Write UTF-8 to the real standard output at once, whatever its encoding.

    Raises:
        BrokenPipeError: nobody reads any more.
        ExitkitError: it cannot be written, to a full disk say.
    """
    stream = real()
    with naming():
        stream.flush()
        stream.buffer.write(text)
        stream.buffer.flush()


@contextmanager
def naming() -> Iterator[None]:
    """Turn an OSError of writing to standard output into a message that says so."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ExitkitError(f"cannot write to stdout: {why(error)}") from error


@contextmanager
def kept_clean() -> Iterator[TextIO]:
    """Give the real standard output, and let everybody else's `print` go to stderr.

    So do writes to descriptor 1, of C libraries and of programs that are started, where it is standard output.
    """
    global _kept
    before, outer = sys.stdout, _kept
    with _apart(before) as found:
        _kept, sys.stdout = found, sys.stderr
        try:
            yield found
        finally:
            _kept, sys.stdout = outer, before


@contextmanager
def _apart(stdout: TextIO) -> Iterator[TextIO]:
    """The same stream on a descriptor of its own, descriptor 1 being stderr's meanwhile, if it is the process's."""
    mine = _duplicate(stdout)
    if mine is None:
        yield stdout
        return
    lines = 1 if stdout.isatty() else -1
    found = os.fdopen(mine, "w", buffering=lines, encoding=stdout.encoding, errors=stdout.errors)
    os.dup2(2, 1)
    try:
        yield found
    finally:
        os.dup2(mine, 1)
        with suppress(OSError):  # whoever wrote has said it already
            found.close()


def _duplicate(stdout: TextIO) -> int | None:
    """A second descriptor of the process's standard output; None for a test's stream, or where one is closed."""
    try:
        if stdout is not sys.__stdout__ or (stdout.fileno(), sys.stderr.fileno()) != (1, 2):
            return None
        stdout.flush()
        return os.dup(1)
    except (OSError, ValueError, AttributeError):
        return None
