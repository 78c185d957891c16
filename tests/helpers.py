"""What several tests do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import exitkit
from exitkit.cli import app


def cli(*args: object) -> dict[str, Any]:
    """The JSON of a command that works."""
    result = CliRunner().invoke(app, [*(str(one) for one in args), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of an artifact."""
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "exits.safetensors")}


def unsealed(folder: Path) -> Path:
    """An artifact that forgets what its files held, so that they may be changed."""
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


@contextmanager
def logged() -> Iterator[list[str]]:
    """What exitkit says in its log, each message as often as it is said, whether or not a command has run before."""
    found: list[str] = []
    log, handler = logging.getLogger("exitkit"), logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


def train_interrupted(**settings: Any) -> None:
    """Train, and press Control-C when all is trained and only scores are missing."""
    _interrupted("exitkit.training.train.score_exits", exitkit.train, settings)


def distil_interrupted(**settings: Any) -> None:
    """Begin to distil, and press Control-C when the first phase starts."""
    _interrupted("exitkit.distillation.distill.run_phases", exitkit.distill, settings)


def _interrupted(where: str, command: Callable[..., object], settings: dict[str, Any]) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, dies)
        with pytest.raises(KeyboardInterrupt):
            command(**settings)
