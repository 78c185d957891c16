"""What commands write. Three rules, kept here for all of them.

- One writer. `held` locks an output for as long as a command works on it, by flock on `.NAME.exitkit-lock` beside it.
  The lock is the operating system's and ends with its process, however that ends: a lock file that was left behind
  blocks nobody. Where there is no flock (Windows, some network folders) a warning says so and nothing is locked.
- Nothing half. `growing` and `write_bytes` write under a name of their own in the same folder, `replace_folder` takes a
  complete folder; what stands under a final name is the old one or the new one, whole. Parts that a killed process
  left are removed by the next one that writes there.
- Nothing of others. Files in a folder that are not known to be exitkit's are carried over into the one that replaces
  it, and names that lead elsewhere are followed only where a person gave them, see `target`.
"""

from __future__ import annotations

import errno
import filecmp
import glob
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from exitkit.errors import ExitkitError, UsageError

LOCK = "exitkit-lock"
PART = "partial"
OLD = "exitkit-old"
LEFT = re.compile(rf"\..+\.(?:{LOCK}|[0-9a-f]{{8}}\.(?:{PART}|{OLD}))")
"""Names of what is here only while a command writes."""
PATIENCE = 0.3
"""Seconds to try for before a lock counts as taken: longer than it takes to let go of one."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}

Own = Callable[[Path], AbstractSet[str]]
"""Files of a folder that are exitkit's, relative to it, with slashes."""

log = logging.getLogger("exitkit")


# --- one writer


class Lock:
    """Holds an output until it is released or the process ends. Made by `lock`."""

    def __init__(self, file: Path, handle: IO[bytes] | None, about: Mapping[str, Any], made: list[Path]) -> None:
        """`handle`: None where there is nothing to lock; `made`: parent folders that were not there before."""
        self._file, self._handle, self._about, self._made = file, handle, dict(about), made
        self.before = [] if handle is None else _records(handle.read())
        """What holders before wrote down that left the lock file behind."""

    def note(self, **more: Any) -> None:
        """Write down who holds the output, and what else may be of use to the next holder."""
        self._about |= more
        if self._handle is not None:
            with suppress(OSError):  # a full disk, or somebody else's file: then the lock is there and says less
                self._handle.write(json.dumps(self._about).encode() + b"\n")

    def release(self, *, keep: bool = False) -> None:
        """Let go. `keep`: leave the lock file, and what it says, to the next holder."""
        if self._handle is None or self._handle.closed:
            return
        with suppress(OSError):
            # Others may share it: then the file is theirs to remove.
            if not keep and _locked(self._handle, shared=False) and _same(self._handle, self._file):
                self._file.unlink()
            else:
                self.note(ended=True)
        self._handle.close()
        for folder in self._made[::-1]:
            with suppress(OSError):  # something stands in it
                folder.rmdir()


def lock(output: Path, command: str, *, shared: bool = False, patience: float = PATIENCE) -> Lock:
    """Take an output for a command.

    Args:
        output: the file or folder; it need not exist. Folders above it are made, and removed if nothing comes of it.
        command: what takes it, to tell others.
        shared: others may share it, and nobody may replace it meanwhile. Where no lock file can be made beside it,
            nobody can replace it either, and nothing is locked.
        patience: seconds to wait for another holder.

    Raises:
        ExitkitError: another command holds it; the message says who and since when.
        UsageError: nothing can be written there.
    """
    file = output.with_name(f".{output.name}.{LOCK}") if output.name else output / f".{LOCK}"
    about = {
        "lock": secrets.token_hex(8),
        "command": command,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }
    made: list[Path] = []
    until = time.monotonic() + patience
    while True:
        try:
            if not shared:
                made += _make(file.parent)
            handle = _opened(file)
        except OSError as error:
            if shared:
                return Lock(file, None, about, [])
            raise UsageError(f"{output}: cannot write there: {error.strerror}. Name another place.") from None
        if not _locked(handle, shared):
            said = _records(handle.read())
            handle.close()
            if time.monotonic() >= until:
                raise ExitkitError(f"{output} is in use by {_holder(said)}. Wait for it to end, or give another name.")
            time.sleep(0.02)
        elif not _same(handle, file):  # its last holder has removed it meanwhile
            handle.close()
        else:
            taken = Lock(file, handle, about, made)
            taken.note()
            return taken


@contextmanager
def held(output: Path, command: str, *, shared: bool = False, patience: float = PATIENCE) -> Iterator[Lock]:
    """Hold an output for the length of a block. Arguments and errors are those of `lock`."""
    taken = lock(output, command, shared=shared, patience=patience)
    try:
        yield taken
    finally:
        taken.release()


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it. Returns the ones that were not there, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in missing[::-1]:
        one.mkdir(exist_ok=True)
    return missing[::-1]


def _opened(file: Path) -> IO[bytes]:
    """A lock file: made if it is not there, nothing in it touched, and never somewhere else through a link."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        number, mode = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | flags, 0o666), "r+b"
    except PermissionError:  # another user's: it can be locked, not written
        number, mode = os.open(file, os.O_RDONLY | flags), "rb"
    return os.fdopen(number, mode, buffering=0)


def _records(content: bytes | None) -> list[dict[str, Any]]:
    """What holders wrote down, a JSON line each; lines that say nothing are left out."""
    found = []
    for line in (content or b"").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return found


def _holder(records: list[dict[str, Any]]) -> str:
    """Who holds a lock: of several that shared it, the last one that runs."""
    ended = {one.get("lock") for one in records if "ended" in one}
    found = [one for one in records if one.get("lock") not in ended and _runs(one)] or records
    if not found:
        return "another command"
    who = found[-1]
    return (
        f"'exitkit {who.get('command')}' (process {who.get('process')} on {who.get('host')}, since "
        f"{who.get('started')})"
    )


def _runs(record: Mapping[str, Any]) -> bool:
    """Whether a holder may still be running; of other machines nobody knows."""
    if record.get("host") != socket.gethostname() or not isinstance(record.get("process"), int):
        return True
    try:
        os.kill(record["process"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _same(handle: IO[bytes], file: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(file, follow_symlinks=False))
    except OSError:
        return False


if sys.platform == "win32":

    def _flock(handle: IO[bytes], shared: bool) -> bool:
        raise OSError(errno.ENOSYS, "no flock")
else:
    import fcntl

    def _flock(handle: IO[bytes], shared: bool) -> bool:
        """Lock an open file, without waiting. False: another process has it. Raises OSError: there are no locks."""
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _locked(handle: IO[bytes], shared: bool) -> bool:
    """As `_flock`; where there are no locks everybody gets one, and is told that it is worth nothing."""
    try:
        return _flock(handle, shared)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _tell_of_no_locks()
        return True


@cache
def _tell_of_no_locks() -> None:
    """Once in a process."""
    log.warning("files cannot be locked here: see to it yourself that no two commands write to one output")


# --- nothing half


@contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Turn what the system says about a file that cannot be written into a message that names it."""
    try:
        yield
    except OSError as error:
        raise ExitkitError(f"cannot write '{file}': {why(error)}.") from error


def why(error: OSError) -> str:
    """The reason of a file that cannot be written."""
    return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)


def write_text(file: Path, text: str) -> None:
    """Replace a text file in one step, as `write_bytes`."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, also after the power has failed.

    A link of that name is replaced; what it leads to is not touched. Raises ExitkitError: it cannot be written; the old
    one then stands as it was, with nothing beside it.
    """
    with naming(file), growing(file) as out:
        out.write(content)


@contextmanager
def growing(file: Path) -> Iterator[BinaryIO]:
    """A new file, which takes the name `file` when the block ends without an exception, and else is removed.

    Raises OSError as it comes.
    """
    _sweep(file)
    out, part = _part(file)
    try:
        with out:
            yield out
            out.flush()
            os.fsync(out.fileno())
            if sys.platform == "win32":
                out.close()  # an open file cannot be renamed there, and none is swept away
            os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _part(file: Path) -> tuple[BinaryIO, Path]:
    """A new file beside `file`, locked for as long as it is open."""
    while True:
        part = _beside(file, PART)
        out = part.open("xb")
        try:
            if _flock(out, shared=False) and _same(out, part):
                return out, part
        except OSError:
            return out, part
        out.close()  # somebody took it for one that was left behind, and has removed it


def _sweep(file: Path) -> None:
    """Remove parts of a file that nobody writes any more."""
    for part in _all_beside(file, PART):
        with suppress(OSError), part.open("rb") as left:
            if _flock(left, shared=False) and _same(left, part):
                part.unlink()


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _all_beside(path: Path, kind: str) -> list[Path]:
    found = path.parent.glob(f".{glob.escape(path.name)}.*.{kind}")
    length = len(f".{path.name}.") + 8 + len(f".{kind}")
    return sorted(one for one in found if LEFT.fullmatch(one.name) and len(one.name) == length)


# --- nothing of others


def target(path: Path, *, whole_folder: bool = False) -> Path:
    """The place that a person means with a name: a link is followed to what is there.

    Args:
        path: the output's name.
        whole_folder: it is a folder that is to be replaced as a whole.

    Raises:
        UsageError: a link that leads nowhere, or a folder that cannot be replaced.
    """
    if path.is_symlink() and not path.exists():
        raise UsageError(
            f"{path} is a link to {os.readlink(path)}, which is not there. Remove the link, or give another name."
        )
    place = path.resolve() if path.is_symlink() or path.name in ("", "..") else path
    if whole_folder and place.is_dir() and (Path.cwd().is_relative_to(place.resolve()) or os.path.ismount(place)):
        raise UsageError(f"{path} is the working folder, above it, or a mounted disk. Name a folder in it.")
    return place


def foreign(folder: Path, own: AbstractSet[str]) -> list[str]:
    """What of a folder is not in `own`: files, links and empty folders, relative to it, with slashes."""
    found = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        names = [*files, *(name for name in folders if (here / name).is_symlink())]
        found += [(here / name).relative_to(folder).as_posix() for name in names if not LEFT.fullmatch(name)]
        if not folders and not files and here != folder:
            found.append(here.relative_to(folder).as_posix())
    return sorted(name for name in found if name not in own)


def new_folder(folder: Path) -> Path:
    """An empty folder beside one that it is to replace, which must be held. Those of killed processes are removed."""
    for left in _all_beside(folder, PART):
        shutil.rmtree(left, ignore_errors=True)
    made = _beside(folder, PART)
    made.mkdir()
    return made


def replace_folder(new: Path, folder: Path, own: Own) -> None:
    """Give a complete folder its final name. What `own` does not know of the one that has it goes over into the new.

    `folder` must be held. A process killed here leaves at any moment a whole folder, the old one or the new one, which
    the next call of `settle` puts in its place, and files of others are in both or in the new one.

    Raises:
        ExitkitError: both have a file of one name, which is not exitkit's in the old one. Nothing is changed.
        OSError: the folder cannot be replaced. It stands as before.
    """
    settle(folder, own)
    aside = None
    if folder.exists():
        _carry(folder, new, own(folder))
        aside = _beside(folder, OLD)
        os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except OSError:
        if aside is not None:
            os.replace(aside, folder)
        raise
    settle(folder, own)


def settle(folder: Path, own: Own) -> None:
    """Finish the replacement of a folder, also one that a killed process has begun. The folder must be held."""
    for aside in _all_beside(folder, OLD):
        if not folder.exists():
            os.replace(aside, folder)
            log.warning("%s: put back as it was before a command was killed that was to replace it", folder)
            continue
        try:
            _carry(aside, folder, own(aside))  # also what others put into it until the last moment
        except (ExitkitError, OSError) as error:
            log.warning("%s: the folder that it has replaced is kept in %s: %s", folder, aside, error)
            continue
        shutil.rmtree(aside, ignore_errors=True)


def _carry(old: Path, new: Path, own: AbstractSet[str]) -> None:
    """Put what is not exitkit's into another folder too. Raises ExitkitError: there is another file of that name."""
    theirs = foreign(old, own)
    for name in theirs:
        if os.path.lexists(new / name) and not _equal(old / name, new / name):
            raise ExitkitError(
                f"{old / name} is not exitkit's, and {new / name} would take its place. Move it elsewhere, or rename "
                "one of the two folders."
            )
    for name in theirs:
        if not os.path.lexists(new / name):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(old / name, new / name)


def _equal(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    if one.is_dir() or other.is_dir():
        return one.is_dir() and other.is_dir()
    return filecmp.cmp(one, other, shallow=False)


def _copy(one: Path, other: Path) -> None:
    """A second name of a file where the filesystem has that, else a copy."""
    if one.is_dir() and not one.is_symlink():
        other.mkdir()
        return
    try:
        os.link(one, other, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(one, other, follow_symlinks=False)
