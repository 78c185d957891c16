"""One input of `predict`: what is answered, or why it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from exitkit.data.conll import listed
from exitkit.data.flaws import Flaw
from exitkit.prediction.text_columns import Wanted

T = TypeVar("T")
Texts = tuple[str | list[str], str | None]


@dataclass(frozen=True, slots=True)
class Line:
    """One input to answer.

    `number` counts from 1, empty lines included: the physical line (of a csv row, the one it starts on), or
    the row in parquet. `text_pair` is None exactly when the model takes one text.
    """

    number: int
    text: str | list[str]  # a list holds words, where these are to be answered
    text_pair: str | None

    @property
    def input(self) -> str | list[str] | tuple[str, str]:
        """What is answered."""
        if self.text_pair is None:
            return self.text
        assert isinstance(self.text, str)
        return self.text, self.text_pair


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be answered; those after it still can. `number` as in `Line`."""

    number: int
    reason: str


def outcome(number: int, parse: Callable[[T], Texts], given: T) -> Line | BadLine:
    """The line that `parse` makes of what was given, or why it makes none."""
    try:
        return Line(number, *parse(given))
    except Flaw as flaw:
        return BadLine(number, str(flaw))


def text_or_words(value: object, column: str, wanted: Wanted) -> str | list[str]:
    """What a column (or key) holds: words in a list where these are to be answered, else a text.

    A string in a column of words is a JSON list of them, or has blanks between them. Lists are texts where none are to
    be answered.
    """
    if isinstance(value, str) and wanted.is_words(column):
        try:
            return listed(value)
        except ValueError as error:
            raise Flaw(
                f'\'{column}\' is not a list of words ({error}); write lists as JSON, such as ["a", "b"]'
            ) from None
    return words_of(value, f"'{column}'") if wanted.keeps_words else text_of(joined(value), f"'{column}'")


def words_of(value: object, name: str) -> str | list[str]:
    """The words of a list, or a text."""
    if isinstance(value, list):
        return [text_of(word, f"word {number} of {name}") for number, word in enumerate(value, 1)]
    return text_of(value, name)


def joined(value: object) -> object:
    """A list of strings as one text, anything else as it is."""
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return " ".join(value)
    return value


def text_of(value: object, name: str) -> str:
    """The value, if it is a string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Flaw(f"{name} is {kind_of(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Flaw(f"{name} holds half a surrogate pair, \\u{ord(value[error.start]):04x}") from None
    return value


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"
