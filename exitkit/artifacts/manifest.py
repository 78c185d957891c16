"""manifest.json: what the files of a model held when it was saved, so that damage is noticed before it answers.

    format: 1
    files: {NAME: {sha256, size}, …}    null instead where a file may be changed

It is no signature: who can change a model can change it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from exitkit.artifacts import records
from exitkit.errors import ExitkitError

FILE = "manifest.json"
FORMAT = 1


def _alone(name: str) -> str:
    """The name of a file in the folder itself."""
    if name != Path(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise ValueError("a name without folders is needed")
    return name


class Seal(records.Record):
    """What a file holds."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: records.Count


class Manifest(records.Record):
    """manifest.json."""

    files: dict[Annotated[str, AfterValidator(_alone)], Seal | None]


def text(folder: Path, sealed: Iterable[str], changeable: Iterable[str] = ()) -> str:
    """A manifest of files in a folder, as it is written."""
    files: dict[str, dict[str, str | int] | None] = {name: _seal(folder / name) for name in sorted(sealed)}
    files |= dict.fromkeys(sorted(changeable))
    return json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n"


def read(folder: Path) -> Mapping[str, Seal | None] | None:
    """The files that a folder was saved with, or None where nobody wrote them down.

    Raises ExitkitError: manifest.json is damaged, or of a newer exitkit.
    """
    file = folder / FILE
    if not file.exists():
        return None
    return records.checked(file, Manifest, records.read_json(file, FORMAT)).files


def check(folder: Path, files: Mapping[str, Seal | None]) -> None:
    """Read every sealed file. Raises ExitkitError, which names the first that holds something else by now.

    Size and date are no evidence that a file is whole; another size is evidence that it is not.
    """
    for name, seal in files.items():
        if seal is not None:
            _check(folder / name, seal)


def digest(folder: Path) -> str | None:
    """64 hex digits over what all sealed files held; None where nobody wrote it down. Raises as `read`."""
    files = read(folder)
    if files is None:
        return None
    return hashlib.sha256(
        "".join(f"{name}:{seal.sha256}" for name, seal in sorted(_sealed(files))).encode()
    ).hexdigest()


def _sealed(files: Mapping[str, Seal | None]) -> Iterable[tuple[str, Seal]]:
    return ((name, seal) for name, seal in files.items() if seal is not None)


def _check(file: Path, seal: Seal) -> None:
    if not file.exists():
        raise ExitkitError(f"{file} is missing. The folder is damaged; train it again or restore the file.")
    size = file.stat().st_size
    if size != seal.size:
        raise _changed(file, f"it has {size} bytes and had {seal.size}")
    if _sha256(file) != seal.sha256:
        raise _changed(file, "its bytes are others")


def _changed(file: Path, why: str) -> ExitkitError:
    return ExitkitError(
        f"{file} is damaged, or was changed since the model was saved: {why}. Restore it or train the model again. If "
        f"the change is yours, remove {FILE}: without it nothing is compared."
    )


def _seal(file: Path) -> dict[str, str | int]:
    return {"sha256": _sha256(file), "size": file.stat().st_size}


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
