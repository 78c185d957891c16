"""The report folder of a benchmark: a page for people, its pictures, the same tables as text, JSON for programs.

    index.html, pictures/*.png    the page
    report.md, benchmark.json     the tables
    report.json                   which of the folder's files are the report's

A report is written apart and takes its name whole. What else lies in the folder stays.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exitkit.artifacts.artifact import CARD
from exitkit.artifacts.cascade import FILE as CASCADE
from exitkit.errors import ExitkitError, UsageError
from exitkit.process import outputs
from exitkit.report.tables import markdown

PICTURES = "pictures"
RESULT = "benchmark.json"
MANIFEST = "report.json"
FORMAT = 1
KEYS = {"runs", "baselines", "environment"}
BEFORE_MANIFESTS = re.compile(
    r"index\.html|report\.md|benchmark\.json"
    r"|pictures/((milliseconds|time)-batch-\d+(-\d+)?|(flops|exits)(-\d+)?|parts-\d+-.+)\.png"
)
"""What reports of 0.1.0 are made of."""

Write = Callable[[Mapping[str, Any]], None]


@contextmanager
def opened(folder: Path) -> Iterator[Write]:
    """Take a folder for a report, before anything is timed. What it yields writes the report.

    Raises:
        UsageError: the folder holds something else, or nothing can be written there.
        ExitkitError: another benchmark is to write there.
    """
    place = outputs.target(folder, whole_folder=True)
    with outputs.held(place, "benchmark"):
        outputs.settle(place, own_files)
        _check(place)
        yield functools.partial(_write, place)


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a report, in place of an older one. Errors as of `opened`, and ExitkitError where the disk is full."""
    with opened(folder) as report:
        report(result)


def own_files(folder: Path) -> set[str]:
    """Files of a folder that are a report's, relative to it; none where there is no report."""
    if not _is_report(folder):
        return set()
    try:
        loaded = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if loaded["format"] == FORMAT:
            return {*map(str, loaded["files"]), MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {name for name in outputs.foreign(folder, set()) if BEFORE_MANIFESTS.fullmatch(name)}


def _is_report(folder: Path) -> bool:
    try:
        loaded = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(loaded, dict) and loaded.keys() >= KEYS


def _check(folder: Path) -> None:
    """Raise UsageError for a folder that a report may not be written to."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file; name a folder.")
    for theirs in (CARD, CASCADE):
        if (folder / theirs).exists():
            raise UsageError(f"--output {folder} holds a model ({theirs}); name a folder of its own for the report.")
    if folder.is_dir() and outputs.foreign(folder, set()) and not _is_report(folder):
        raise UsageError(
            f"--output {folder} holds files, and no report of 'exitkit benchmark'; name another folder with --output."
        )


def _write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a report into a folder that is held."""
    _check(folder)
    content = _content(result)  # all is drawn before anything is written
    with outputs.naming(folder):
        new = outputs.new_folder(folder)
        try:
            (new / PICTURES).mkdir()
            for name, part in content.items():
                with outputs.naming(folder / name):
                    (new / name).write_bytes(part)
            outputs.replace_folder(new, folder, own_files)
        except (OSError, ExitkitError):
            shutil.rmtree(new, ignore_errors=True)
            raise


def _content(result: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a report by their names."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells how it looks for fonts
    from exitkit.report import page, pictures

    made = page.drawn(result)
    of_runs = {
        number: pictures.parts(run)
        for number, run in enumerate(result["runs"])
        if "breakdown" in run and run["target"] != 1  # at 1x nobody leaves and nothing changes
    }
    found = {f"{PICTURES}/{name}.png": pictures.png(figure) for name, _, figure in made}
    for number, figure in of_runs.items():
        name = re.sub("[^A-Za-z0-9_-]", "-", pictures.named(result["runs"][number]).replace(".", "_"))
        found[f"{PICTURES}/parts-{number + 1}-{name}.png"] = pictures.png(figure)
    found["index.html"] = page.page(result, made, of_runs).encode()
    found["report.md"] = markdown(result).encode()
    found[RESULT] = (json.dumps(result, indent=2) + "\n").encode()
    found[MANIFEST] = (json.dumps({"format": FORMAT, "files": sorted(found)}, indent=2) + "\n").encode()
    return found
