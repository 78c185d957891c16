"""Inputs of `predict` in JSON: an object with a text, a text alone, a pair, or the words of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from exitkit.data import json_rows
from exitkit.data.fields import Path, paths
from exitkit.data.fields import value as value_at
from exitkit.data.flaws import Flaw
from exitkit.errors import UsageError
from exitkit.prediction.lines import Texts, kind_of, text_of, text_or_words, words_of
from exitkit.prediction.text_columns import Wanted, choose


class Objects:
    """Reads values; where the texts are is found once for all objects with the same keys."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._where = lru_cache(256)(self._choose)
        self._begun = False

    def line(self, raw: bytes) -> Texts:
        """What a line holds. Raises Flaw."""
        return self.value(json_rows.parse(raw))

    def value(self, value: object) -> Texts:
        """What a value holds.

        Raises Flaw, and ExitkitError for a whole frame where the first row should be.
        """
        wanted = self._wanted
        match value:
            case dict() as row:
                if not self._begun:
                    self._begun = True
                    json_rows.check_rows(row)
                text, pair, found, second = self._where(tuple(row))
                given = text_or_words(value_at(row, found), text, wanted)
                return given, None if pair is None else text_of(value_at(row, second), f"'{pair}'")
            case str() as text:
                if wanted.expects_pair:
                    raise Flaw("one text, but the model takes pairs")
                return text_of(text, "the text"), None
            case list() as values if wanted.keeps_words:
                return words_of(values, "the sentence"), None
            case [first, second]:
                if not wanted.expects_pair:
                    raise Flaw("a pair of texts, but the model takes one text")
                return text_of(first, "the first text"), text_of(second, "the second text")
            case list() as values:
                raise Flaw(f"an array of {len(values)}; a pair is an array of two strings")
            case other:
                raise Flaw(f"{kind_of(other)}, not an object or a string")

    def _choose(self, names: tuple[str, ...]) -> tuple[str, str | None, Sequence[Path], Sequence[Path]]:
        """The names of the text and its pair, and where they are."""
        try:
            text, pair = choose(names, self._wanted)
        except UsageError as error:
            raise Flaw(str(error)) from None
        return text, pair, paths(text, names), paths(pair, names) if pair is not None else ()
