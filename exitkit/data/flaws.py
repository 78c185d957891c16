"""Why one record of a file cannot be read, when those after it can."""

from __future__ import annotations


class Flaw(Exception):
    """One record that cannot be used; the message says why. Training stops at it, prediction may leave it out."""


def decode(raw: bytes) -> str:
    """A line of UTF-8. Raises Flaw."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        place = f", number {error.start + 1} of the line"
        raise Flaw(not_utf8(raw[error.start], place) + WAY_OUT) from None


def not_utf8(byte: int, place: str) -> str:
    """What is wrong with a byte."""
    return f"not UTF-8: byte 0x{byte:02x}{place}"


def iconv(encoding: str) -> str:
    """The command that makes UTF-8 of a file."""
    return f"iconv -f {encoding} -t utf-8 FILE > NEW_FILE"


WAY_OUT = f"; if the file is windows-1252, convert it: {iconv('windows-1252')}"
