"""Opens a file of any format but Parquet as one stream of bytes: unpacked, checked, a line at most 64 MB long.

Memory does not grow with the file. Only the standard library is needed, but for zst.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from exitkit.data import lfs
from exitkit.data.flaws import iconv
from exitkit.data.formats import SHEET, Kind
from exitkit.errors import ExitkitError

LONGEST_LINE = 64 * 2**20  # bytes
BLOCK = 2**16  # bytes that are looked at before anything is read, and read at a time
BOM = b"\xef\xbb\xbf"

SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (lfs.FIRST_LINE, "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"PK\x03\x04", "a zip archive, as Excel workbooks and OpenDocument sheets are", f"{SHEET}, or unpack it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of an old Office program", SHEET),
    (b"PAR1\x15", "a Parquet file", "give it the suffix .parquet"),
    (b"ARROW1\0\0", "an Arrow file", "load it with pandas.read_feather and write it with to_parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "load it with datasets.Dataset.from_file and write it with to_parquet"),
    (b"\x1f\x8b\x08", "compressed with gzip", "add .gz to its name, or unpack it with gunzip"),
    (b"BZh91AY&SY", "compressed with bzip2", "add .bz2 to its name, or unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "compressed with xz", "add .xz to its name, or unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "add .zst to its name, or unpack it with unzstd"),
    (b"%PDF-", "a PDF document", "save its text"),
    (b"SQLite format 3\0", "an SQLite database", "export the table as csv"),
    (b"\x89HDF\r\n", "an HDF5 file", "write its data as parquet"),
    (b"\x93NUMPY", "a NumPy file", "write its data as parquet"),
    (b"\x80\x04\x95", "a pickle", "write its data as parquet"),
)
"""First bytes that no text has: what such a file is, and the way out."""

ENCODINGS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte-order marks; that of UTF-32 begins with that of UTF-16."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors that concern a whole file begin with its name; those of unpacking and decoding become ExitkitError."""
    try:
        yield
    except ExitkitError as error:
        raise type(error)(f"{name}: {error}") from error
    except UnicodeDecodeError as error:
        raise ExitkitError(f"{name}: {wrong_encoding(reason=error.reason)}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ExitkitError(f"{name}: cannot be read: {error}") from error


@contextmanager
def opened(path: Path, kind: Kind) -> Iterator[BinaryIO]:
    """The content of a file, unpacked and without its byte-order mark, for as long as the block lasts.

    Raises ExitkitError: it is not text in UTF-8 by its first bytes, or later: a line is too long.
    """
    with _UNPACKED[kind.compression](path) as source:
        yield checked(source.read, whole_blocks=True, in_lines=kind.format != "json")


def checked(read: Callable[[int], bytes], *, whole_blocks: bool, in_lines: bool = True) -> BinaryIO:
    """A stream over what `read` gives, checked as in `opened`.

    With `whole_blocks` blocks are filled; without, one call of `read` is made where one is enough, so that a person
    who types gets an answer to each line.
    """
    raw = _Checked(read, whole_blocks, in_lines)
    return cast(BinaryIO, io.BufferedReader(raw, BLOCK))


def check_start(start: bytes) -> None:
    """Raise ExitkitError for first bytes that belong to something else than text in UTF-8."""
    for signature, what, way_out in SIGNATURES:
        if start.startswith(signature):
            raise ExitkitError(f"this is {what}; {way_out}.")
    encoding = next((name for mark, name in ENCODINGS if start.startswith(mark)), None) or _without_mark(start)
    if encoding:
        raise ExitkitError(wrong_encoding(encoding))


def check_text(start: bytes) -> None:
    """Raise ExitkitError for a file without a known suffix whose first bytes are no text at all."""
    try:
        start[:1024].decode() if b"\0" in start[:1024] else None
    except UnicodeDecodeError as error:
        if error.end < len(start[:1024]):  # else a letter is cut
            raise ExitkitError(
                "this is no text: it holds zero bytes and bytes that are not UTF-8. Give csv, tsv, jsonl, parquet or "
                "plain text."
            ) from None


def wrong_encoding(encoding: str = "windows-1252", reason: str | None = None) -> str:
    """The message for a file in another encoding, with the way out."""
    because = f" ({reason})" if reason else ""
    return f"not UTF-8{because}; it looks like {encoding}. Convert it: {iconv(encoding)}"


def text_lines(stream: BinaryIO, errors: str = "strict") -> io.TextIOWrapper:
    """The lines of a stream, with their ends: csv and JSON each know their own."""
    return io.TextIOWrapper(stream, encoding="utf-8", errors=errors, newline="\n")


class _Checked(io.RawIOBase):
    """What `read` gives: known to begin as text, with line feeds where only carriage returns end its lines."""

    def __init__(self, read: Callable[[int], bytes], whole_blocks: bool, in_lines: bool) -> None:
        self._read, self._whole, self._in_lines = read, whole_blocks, in_lines
        self._line, self._length = 1, 0  # of the line that has not ended yet
        self._begun = self._old_mac = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._block(len(buffer)) if self._begun else self._first(len(buffer))
        if self._old_mac:
            block = block.replace(b"\r", b"\n")
        if self._in_lines:
            self._measure(block)
        buffer[: len(block)] = block
        return len(block)

    def _block(self, size: int) -> bytes:
        block = self._read(size)
        while self._whole and block and len(block) < size and (more := self._read(size - len(block))):
            block += more
        return block

    def _first(self, size: int) -> bytes:
        self._begun = True
        block = self._block(size)
        check_start(block)
        self._old_mac = self._whole and b"\r" in block and b"\n" not in block
        self._in_lines = self._in_lines or not block.removeprefix(BOM).lstrip().startswith(b"[")
        # A block of nothing but the mark must not look like the end.
        return block.removeprefix(BOM) or (self._block(size) if block else block)

    def _measure(self, block: bytes) -> None:
        end = block.rfind(b"\n")
        self._length = len(block) - end - 1 if end >= 0 else self._length + len(block)
        self._line += block.count(b"\n")
        if self._length > LONGEST_LINE:
            raise ExitkitError(
                f"line {self._line} is longer than {LONGEST_LINE // 2**20} MB; is this a file of texts, one a line?"
            )


def _zst(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


_UNPACKED: dict[str | None, Callable[[Path], Any]] = {
    None: lambda path: path.open("rb", buffering=0),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zst,
}


def _without_mark(start: bytes) -> str | None:
    """UTF-16 that lacks its byte-order mark: every other byte of the first line is zero."""
    units = start[:64]
    if len(units) < 8:
        return None
    even, odd = set(units[0::2]), set(units[1::2])
    if odd == {0} and 0 not in even:
        return "utf-16le"
    return "utf-16be" if even == {0} and 0 not in odd else None
