"""Live runs that are remembered: none is run twice, and an interrupted search goes on where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from exitkit.artifact import write_text
from exitkit.calibration.search import Candidate, Evaluate
from exitkit.settings import Schedule, Settings

log = logging.getLogger("exitkit")


class Runs:
    """Evaluates schedules, each once.

    Args:
        evaluate: runs one.
        about: everything that a result depends on besides the settings, as plain data.
        file: where results are kept, a line each behind a first one with `about`; None keeps them in memory only. A
            file about something else is started anew.
    """

    def __init__(self, evaluate: Evaluate, about: Mapping[str, Any], file: Path | None = None) -> None:
        self.evaluate, self.file = evaluate, file
        self.known: dict[str, Candidate] = {}
        if file is None:
            return
        for candidate in _read(file, about):
            self.known[_key(candidate.settings)] = candidate
        if self.known:
            log.info("%d settings are known from an earlier search of the same and are not run again", len(self.known))
        lines = [json.dumps(about), *map(_line, self.known.values())]
        write_text(file, "".join(f"{line}\n" for line in lines))  # without a last line that was cut off

    def __call__(self, plan: Schedule) -> Candidate:
        """What a schedule gives."""
        key = _key(plan.settings)
        if key not in self.known:
            candidate = self.known[key] = self.evaluate(plan)
            if self.file is not None:
                with self.file.open("a", encoding="utf-8") as lines:
                    lines.write(f"{_line(candidate)}\n")
        return self.known[key]


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _line(candidate: Candidate) -> str:
    return json.dumps({**vars(candidate), "speedup": dict(candidate.speedup), "taken": candidate.taken.tolist()})


def _read(file: Path, about: Mapping[str, Any]) -> Iterator[Candidate]:
    """The results in a file, up to the first line that is damaged; none if it is about something else."""
    if not file.exists():
        return
    first, *lines = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    try:
        if json.loads(first) != json.loads(json.dumps(about)):
            return
        for line in lines:
            plain = json.loads(line)
            yield Candidate(**{**plain, "taken": torch.tensor(plain["taken"])})
    except (ValueError, TypeError, KeyError):
        return
