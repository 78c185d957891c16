"""What a column may be asked for as: its name, a field inside it, or several of these to be joined."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from exitkit.data.flaws import Flaw

Path = tuple[str, ...]
"""The name of a column, and the names of the fields inside it that lead to the value."""


def paths(asked: str, names: Collection[str]) -> tuple[Path, ...]:
    """What is asked for out of the columns `names`; empty where one of it is not there.

    A name means the column of that name. Else `title,body` means both columns, joined in this order, and `label.name`
    the field `name` inside the column `label`.
    """
    if asked in names:
        return ((asked,),)
    found = [_path(part, names) for part in ([asked] if "," not in asked else map(str.strip, asked.split(",")))]
    return () if None in found else tuple(path for path in found if path is not None)


def _path(asked: str, names: Collection[str]) -> Path | None:
    if asked in names:
        return (asked,)
    steps = asked.split(".")
    for length in range(len(steps) - 1, 0, -1):
        if (column := ".".join(steps[:length])) in names:
            return (column, *steps[length:])
    return None


def value(row: Mapping[str, object], asked: Sequence[Path]) -> object:
    """What a row holds where `paths` leads; None where a step does not lead on, or nothing is there to be joined.

    Raises Flaw: something else than texts was to be joined.
    """
    values = [_inside(row[path[0]], path[1:]) for path in asked]
    if len(values) == 1 or all(one is None for one in values):
        return values[0]
    for one, path in zip(values, asked, strict=True):
        if not (one is None or isinstance(one, str)):
            raise Flaw(f"'{'.'.join(path)}' is no text; only texts can be joined")
    return joined([one for one in values if isinstance(one, str)])


def _inside(value: object, steps: Sequence[str]) -> object:
    for step in steps:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def joined(texts: Sequence[str]) -> str:
    """Several columns as one text: an empty one leaves no blank behind."""
    return " ".join(filter(None, texts))
