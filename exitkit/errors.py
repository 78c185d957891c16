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


class PluginError(ExitkitError):
    """A plugin is broken, or breaks its contract while it runs; the message names it."""


def _on_a_screen(message: str) -> str:
    """A message without its middle, where it is longer than a screen: it begins with the fault and ends with advice."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 300]} […] {message[-290:]}"


def one_of(what: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that is not among the known ones, with the closest match first."""
    names = sorted(known)
    close = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"unknown {what} '{given}'.{hint} Known: {', '.join(names) or 'none'}."
