"""JSON Lines, and JSON files that are one list of rows, read as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NoReturn

from exitkit.data.flaws import Flaw, decode
from exitkit.data.opening import BLOCK, LONGEST_LINE, text_lines
from exitkit.errors import ExitkitError

DECODER = json.JSONDecoder()
BLANK = " \t\r\n"
BLANKS = re.compile(f"[{BLANK}]*")
LIST_OF_OBJECTS = re.compile(rb"\s*\[\s*\{")
ONE_OBJECT = 'Write one object per line, such as {"text": "..."}, or the whole file as one list of objects.'


def is_list(start: bytes, format: str) -> bool:
    """Whether a file that begins like this is one list: any list in a .json file, in .jsonl only one of objects."""
    return start.lstrip().startswith(b"[") if format == "json" else LIST_OF_OBJECTS.match(start) is not None


def parse(raw: bytes) -> object:
    """What a line holds. Raises Flaw."""
    text = decode(raw).rstrip(BLANK)
    at = len(text) - len(text.lstrip(BLANK))
    try:
        value, end = DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise Flaw(f"invalid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise Flaw(f"invalid JSON: {error}") from None
    if end < len(text):
        raise Flaw(f"invalid JSON: Extra data at column {end + 1}")
    return value


def elements(stream: BinaryIO) -> Iterator[object]:
    """The elements of a file that is one list; no more than one of them, and a block, is held.

    Raises ExitkitError, with the line and column: what stands there is no JSON, or more than a list.
    """
    window = _Window(stream)
    window.take("[")
    if window.next() == "]":
        window.take("]")
    else:
        while True:
            yield window.value()
            if window.next() == "]":
                window.take("]")
                break
            window.take(",")
    if window.next():
        if window.next() == "[":
            raise ExitkitError(f"each line is a list of its own ({window.place()}). {ONE_OBJECT}")
        window.fail("Extra data")


class _Window:
    """The part of a JSON text that is being read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._text = text_lines(stream)
        self._held, self._at = "", 0
        self._line, self._column = 1, 1  # where `_held` begins
        self._ended = False

    def next(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._at = BLANKS.match(self._held, self._at).end()  # type: ignore[union-attr]  # it matches always
            if self._at < len(self._held) or self._ended:
                return self._held[self._at : self._at + 1]
            self._read(BLOCK)

    def take(self, sign: str) -> None:
        """Go past a sign."""
        if self.next() != sign:
            self.fail(f"Expecting '{sign}'" if sign == "[" else "Expecting ',' delimiter")
        self._at += 1

    def value(self) -> object:
        """The value that begins here."""
        self.next()
        while True:
            try:
                value, end = DECODER.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                if self._ended or len(self._held) - self._at > LONGEST_LINE:
                    self._at = error.pos
                    self.fail(error.msg)
            except (ValueError, RecursionError) as error:
                self.fail(str(error))
            else:
                if end < len(self._held) or self._ended:
                    self._at = end
                    return value
            self._read(max(BLOCK, len(self._held) - self._at))

    def place(self) -> str:
        """Where reading stands."""
        before = self._held[: self._at]
        lines = before.count("\n")
        column = len(before) - before.rfind("\n") if lines else self._column + len(before)
        return f"line {self._line + lines}, column {column}"

    def fail(self, reason: str) -> NoReturn:
        """Raise ExitkitError."""
        raise ExitkitError(f"not valid JSON: {reason} at {self.place()}")

    def _read(self, size: int) -> None:
        """Hold more text, and no longer what has been read."""
        passed = self._held[: self._at]
        lines = passed.count("\n")
        self._column = len(passed) - passed.rfind("\n") if lines else self._column + len(passed)
        self._line += lines
        more = self._text.read(size)
        self._held, self._at, self._ended = self._held[self._at :] + more, 0, not more


def check_rows(record: object) -> None:
    """Raise ExitkitError for a first record that is a whole frame, as pandas writes one by default."""
    if not isinstance(record, Mapping) or not record:
        return
    numbered = [isinstance(value, Mapping) and len(value) > 0 and _counts(value) for value in record.values()]
    if all(numbered) or record.keys() == {"columns", "index", "data"}:
        form = "columns" if all(numbered) else "split"
        raise ExitkitError(
            f"this holds a frame by its columns, not rows, as DataFrame.to_json(orient='{form}') writes it. Write it "
            "with to_json(orient='records', lines=True)."
        )


def _counts(index: Mapping[str, object]) -> bool:
    return all(name == str(number) for number, name in enumerate(index))
