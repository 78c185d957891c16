"""Progress of long work, on stderr. Silent until a front end asks for it, so that the library never prints."""

from __future__ import annotations

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


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting on stderr while it loads a model; what matters is checked by the caller."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
