"""Progress of long work, on stderr. Silent until a front end asks for it, so that the library never prints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_console: ContextVar[Console | None] = ContextVar("progress console", default=None)

Advance = Callable[..., None]
"""`advance(steps=1, note="")`"""


def show_on(console: Console) -> None:
    """Show bars on a console from now on."""
    _console.set(console)


@contextmanager
def bar(title: str, total: float) -> Iterator[Advance]:
    """A progress bar; call what this yields after each step."""
    console = _console.get()
    if console is None:
        yield lambda steps=1, note="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(steps: float = 1, note: str = "") -> None:
            progress.update(task, advance=steps)
            if note:
                progress.update(task, note=note)

        yield advance


_hushing = threading.Lock()
_hushed = 0  # how many are inside `quiet`, in all threads
_usual: tuple[int, bool] = (0, False)  # transformers' verbosity and whether it shows bars, when nobody is


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting on stderr while it loads a model; what matters is checked by the caller.

    Its switches are those of the whole process: the first thread to come turns them off, the last one to go back on.
    """
    from transformers.utils import logging as transformers_logging

    global _hushed, _usual
    with _hushing:
        if not _hushed:
            _usual = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
        _hushed += 1
    try:
        yield
    finally:
        with _hushing:
            _hushed -= 1
            if not _hushed:
                transformers_logging.set_verbosity(_usual[0])
                if _usual[1]:
                    transformers_logging.enable_progress_bar()
