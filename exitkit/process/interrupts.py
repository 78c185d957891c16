"""Control-C, told from a KeyboardInterrupt that somebody raises, and not lost in destructors."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SOON = 0.05
"""Seconds until an interrupt that was dropped is sent again."""

_received = False


def by_user() -> bool:
    """Whether a KeyboardInterrupt may come from the user.

    Without `heard` nobody can tell in the main thread; in others it never does.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    return _received or signal.getsignal(signal.SIGINT) is not _hear


def pressed() -> bool:
    """Whether Control-C was pressed since somebody listens; what fails then may have made another error of it."""
    return _received


@contextmanager
def heard() -> Iterator[None]:
    """Remember that Control-C was pressed, for as long as this lasts.

    Python drops exceptions of destructors and of callbacks of the garbage collector, KeyboardInterrupt too, so that
    a program would go on as if nothing had been pressed. Such a one is sent again a moment later. Where somebody else
    listens, nobody does, or this is not the main thread, nothing changes.
    """
    global _received
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    hook = sys.unraisablehook

    def once_more(dropped: sys.UnraisableHookArgs) -> None:
        if _received and isinstance(dropped.exc_value, KeyboardInterrupt):
            again = threading.Timer(SOON, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
            again.daemon = True
            with suppress(RuntimeError):  # no thread any more: the program is ending
                again.start()
        else:
            hook(dropped)

    _received = False
    signal.signal(signal.SIGINT, _hear)
    sys.unraisablehook = once_more
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook


def _hear(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
    raise KeyboardInterrupt
