"""`OUTPUT.partial`: the folder that a model grows in, and what a resumed run must find there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers.trainer_utils import get_last_checkpoint

from exitkit.artifacts import artifact
from exitkit.configuration.config import Training
from exitkit.configuration.parsing import option
from exitkit.engine.model import ExitModel
from exitkit.errors import UsageError
from exitkit.process import outputs

TRAINING = "training"  # the trainer's own state; removed when the model is complete
RUN = "run.json"
DONE = "done"
WEIGHTS = "model.safetensors"
SPENT = "spent.json"
FREE = {"output", "resume", "overwrite", "threads", "device", "cache"}
"""Settings that may differ when a run is resumed."""
TOLD = {"seed", "epochs", "exits", "pooling", "training", "data"}
"""What run.json says of every run: a folder without it is not ours."""


def check_output(output: Path, resume: bool, overwrite: bool) -> Path:
    """The folder to work in, `OUTPUT.partial`. Nothing is written or removed yet; OUTPUT must be held.

    OUTPUT.partial is exitkit's if training/run.json in it says so, if it holds a complete model, or if it has no file.

    Raises UsageError for anything that may not be touched.
    """
    outputs.settle(output, artifact.own_files)
    partial = output.with_name(output.name + ".partial")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; name a folder.")
    if output.is_dir() and any(output.iterdir()):
        if not artifact.is_artifact(output):
            raise UsageError(f"--output {output} holds files that are not an exitkit model; name another folder.")
        if not overwrite:
            raise UsageError(f"--output {output} holds a model already. Name another folder, or add --overwrite.")
    if not os.path.lexists(partial):
        return partial
    if partial.is_symlink() or not partial.is_dir() or not _ours(partial):
        raise UsageError(
            f"{partial}, where the model is to grow, is there and is not an interrupted run of exitkit. Rename or "
            "remove it, or name another --output."
        )
    if not resume and not overwrite and any(partial.rglob("*.safetensors")):
        raise UsageError(
            f"{partial} holds an interrupted run. Add --resume to go on with it, or --overwrite to start anew."
        )
    return partial


def _ours(partial: Path) -> bool:
    try:
        return bool(json.loads((partial / TRAINING / RUN).read_text(encoding="utf-8")).keys() >= TOLD)
    except (OSError, ValueError, AttributeError):
        left = outputs.foreign(partial, set())  # a run may be killed before it has said what it is, or after
        return artifact.is_artifact(partial) or all((partial / name).is_dir() for name in left)


def open_partial(partial: Path, resume: bool) -> Path:
    """Make the folder, empty unless a run is resumed. Returns where the trainer's own state belongs.

    Raises UsageError: nothing can be written there.
    """
    try:
        if partial.exists() and not resume:
            shutil.rmtree(partial)
        (partial / TRAINING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {partial.with_suffix('')}: cannot write there: {error.strerror}.") from None
    return partial / TRAINING


def same_run(partial: Path, settings: Training, content: Mapping[str, str]) -> None:
    """Write down what this run is, or check that it is the one that was interrupted.

    Args:
        partial: the folder.
        settings: of this run.
        content: content hashes of what else must be the same, by what it is called.

    Raises:
        UsageError: the interrupted run was another one; the message says in what.
    """
    plain = settings.model_dump(mode="json", exclude={*FREE, "data"})
    now: dict[str, Any] = {**plain, "data": settings.data if isinstance(settings.data, str) else None, **content}
    file = partial / TRAINING / RUN
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a first run, or one that was killed before it had said what it is
        outputs.write_text(file, json.dumps(now))
        return
    differing = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    if differing:
        said = "; ".join(
            f"the {key} have changed" if key in content else _difference(key, before.get(key), now.get(key))
            for key in differing
        )
        raise UsageError(
            f"{partial} holds an interrupted run of another command: {said}. Give the same settings to go on with it, "
            "or --overwrite instead of --resume to start anew."
        )


def _difference(key: str, before: Any, now: Any) -> str:
    return f"{option(key)} was {before if before is not None else 'not given'}, and now is {now}"


def whole_checkpoint(state: Path) -> Path | None:
    """The last checkpoint of a phase that was written to its end; ones that were not are removed.

    The trainer writes `trainer_state.json` last.
    """
    while state.is_dir() and (last := get_last_checkpoint(str(state))):
        try:
            json.loads((Path(last) / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(last)
            continue
        return Path(last)
    return None


def finish_phase(model: ExitModel, state: Path, spent: Mapping[str, float]) -> None:
    """Keep the weights of a finished phase and nothing else of it. It is done when `NAME.done` stands, not before."""
    partial, done = state.with_name(state.name + ".partial"), state.with_name(f"{state.name}.{DONE}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with artifact.writing(partial):
        save_file({name: value.clone().contiguous() for name, value in model.state_dict().items()}, partial / WEIGHTS)
        outputs.write_text(partial / SPENT, json.dumps(dict(spent)))
    os.replace(partial, done)
    shutil.rmtree(state, ignore_errors=True)


def finished_phase(model: ExitModel, state: Path) -> dict[str, float] | None:
    """Load the weights of a phase if it was finished. Returns what it took, or None if it was not."""
    done = state.with_name(f"{state.name}.{DONE}")
    if not done.is_dir():
        return None
    model.load_state_dict(load_file(done / WEIGHTS))
    found: dict[str, float] = json.loads((done / SPENT).read_text(encoding="utf-8"))
    return found
