"""What a search has found so far: nothing is tried twice, and an interrupted search goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from exitkit.process.outputs import naming, write_text

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """Results by what they are of.

    Args:
        about: everything that results depend on besides their key, as plain data.
        file: where they are kept, a JSON line each behind a first one with `about`; None keeps them in memory only. A
            file about something else is started anew, and what stands behind a damaged line is forgotten.
        plain: a key and its result as plain data.
        parsed: the inverse. Raises ValueError, TypeError or KeyError for anything else.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        file: Path | None,
        plain: Callable[[K, V], Any],
        parsed: Callable[[Any], tuple[K, V]],
    ) -> None:
        self.file, self.plain = file, plain
        self.known: dict[K, V] = {}
        if file is None:
            return
        self.known.update(_read(file, about, parsed))
        lines = [json.dumps(about), *(json.dumps(plain(*one)) for one in self.known.items())]
        write_text(file, "".join(f"{line}\n" for line in lines))  # without a last line that was cut off

    def recall(self, key: K, find: Callable[[], V]) -> V:
        """The result of a key, found now if it is not known."""
        if key not in self.known:
            self.known[key] = find()
            if self.file is not None:
                with naming(self.file), self.file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(self.plain(key, self.known[key])) + "\n")
        return self.known[key]


def _read(file: Path, about: Mapping[str, Any], parsed: Callable[[Any], tuple[K, V]]) -> Iterator[tuple[K, V]]:
    """The results in a file, up to the first line that is damaged; none if it is about something else."""
    if not file.exists():
        return
    first, *lines = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    try:
        if json.loads(first) != json.loads(json.dumps(about)):
            return
        for line in lines:
            yield parsed(json.loads(line))
    except (ValueError, TypeError, KeyError):
        return
