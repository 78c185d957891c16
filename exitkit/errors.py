"""What exitkit raises on purpose. Anything else that escapes is a bug."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 900  # characters of a message, whatever data put into it


class ExitkitError(Exception):
    """Something failed for a reason that the user can act on; the message says what, which value, and what to do.

    The command line prints the message without a traceback and ends with `exit_code`.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(_on_a_screen(given) if isinstance(given, str) else given for given in args))


class UsageError(ExitkitError):
    """The request itself is wrong: a value that is not allowed, an option missing. Exit code 2."""

    exit_code = 2


class ShortageError(ExitkitError):
    """Memory or threads have run out, and the message says what could not be done for that."""


class PluginError(ExitkitError):
    """A plugin is broken, or breaks its contract while it runs; the message names it."""


OUT_OF_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "CUDA out of memory",
)
NO_THREADS = ("can't start new thread", "can't create new thread")


def shortage(error: BaseException | None, less: str) -> str | None:
    """What to say of an error that comes of the machine running out of memory or threads; None for any other.

    Errors that were raised from such a one count too: what failed is not to blame.

    Args:
        error: any.
        less: what to do when memory runs out, as the end of a sentence.
    """
    looked_at: list[BaseException] = []
    while error is not None and error not in looked_at:
        looked_at.append(error)
        kinds = {kind.__name__ for kind in type(error).__mro__}  # torch's own, without importing torch
        said = str(error) if kinds & {"RuntimeError", "OSError"} else ""
        if kinds & {"MemoryError", "OutOfMemoryError"} or any(words in said for words in OUT_OF_MEMORY):
            return f"out of memory; {less}"
        if any(words in said for words in NO_THREADS):
            return "the machine gives no more threads, or no memory for one; use --threads 1, or raise limits (ulimit)"
        error = error.__cause__ or error.__context__
    return None


def _on_a_screen(message: str) -> str:
    """A message without its middle, where it is longer than a screen: it begins with the fault and ends with advice."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 300]} […] {message[-290:]}"


def one_of(what: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that is not among the known ones, with the closest match first."""
    names = sorted(known)
    close = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"unknown {what} '{given}'.{hint} Known: {', '.join(names) or 'none'}."
