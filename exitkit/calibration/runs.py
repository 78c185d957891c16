"""Live runs of settings that are remembered."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from exitkit.calibration.memory import Memory
from exitkit.calibration.search import Candidate, Evaluate
from exitkit.engine.schedule import Schedule, Settings

log = logging.getLogger("exitkit")


class Runs(Memory[str, Candidate]):
    """Evaluates schedules, each once.

    Args:
        evaluate: runs one.
        about: everything that a result depends on besides the settings, as plain data.
        file: where results are kept; None keeps them in memory only.
    """

    def __init__(self, evaluate: Evaluate, about: Mapping[str, Any], file: Path | None = None) -> None:
        super().__init__(about, file, _plain, _parsed)
        self.evaluate = evaluate
        if self.known:
            log.info("%d settings are known from an earlier search of the same and are not run again", len(self.known))

    def __call__(self, plan: Schedule) -> Candidate:
        """What a schedule gives."""
        return self.recall(_key(plan.settings), lambda: self.evaluate(plan))


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _plain(key: str, candidate: Candidate) -> Any:
    return {**vars(candidate), "speedup": dict(candidate.speedup), "taken": candidate.taken.tolist()}


def _parsed(plain: Any) -> tuple[str, Candidate]:
    candidate = Candidate(**{**plain, "taken": torch.tensor(plain["taken"])})
    return _key(candidate.settings), candidate
