"""The command line: one thin file per command.

This file imports nothing that takes time, so that Control-C is understood from the first moment on.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from exitkit.cli.program import app as app

INTERRUPTED = 130


def main() -> None:
    """What the `exitkit` script runs."""
    try:
        _use_utf8()
        from exitkit.process import interrupts

        with interrupts.heard():
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="replace")  # a letter that a terminal lacks is no reason to fail
            from exitkit.cli.program import app

            app()
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except SystemExit as ended:
        if _interrupted(ended):
            _fail("interrupted", INTERRUPTED)
        raise
    except OSError as error:
        _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left that Control-C could spoil


def _use_utf8() -> None:
    """Start over in Python's UTF-8 mode where paths have letters that the locale's encoding lacks.

    Python carries such letters along as surrogates, and libraries that are written in Rust cannot open such paths.
    """
    given = [os.getcwd(), *sys.argv]
    if sys.getfilesystemencoding() != "utf-8" and not all(one.isascii() for one in given):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _interrupted(ended: SystemExit) -> bool:
    """Whether typer made this of a Control-C that no command has spoken of, while it read the arguments say."""
    return isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt)


def _fail(message: str, code: int) -> NoReturn:
    """Say what happened outside of a command: while the program starts, or shows help."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": message}, indent=2) + "\n")
            sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.write(f"error: {message}\n")
    with suppress(OSError):  # what is left unwritten would fail once more at the very end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'exitkit.cli' has no attribute '{name}'")
    from exitkit.cli.program import app

    return app
