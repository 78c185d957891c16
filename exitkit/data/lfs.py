"""Git LFS pointers: what stands in place of a large file that git has not fetched."""

from __future__ import annotations

from pathlib import Path

FIRST_LINE = b"version https://git-lfs.github.com/spec/"

WAY_OUT = "a Git LFS pointer, not the file itself: run 'git lfs pull' where it was cloned, or download it again"
"""What to say of one."""


def is_pointer(file: Path) -> bool:
    """Whether a file holds a pointer; one that is not there does not."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(FIRST_LINE)) == FIRST_LINE
