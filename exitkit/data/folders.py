"""Which files of a folder are data, and of which split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from exitkit.data import json_rows
from exitkit.data.flaws import Flaw
from exitkit.data.formats import ALLOWED, foreign, kind_of
from exitkit.data.opening import naming, opened
from exitkit.errors import UsageError

ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}
USUAL = frozenset({"train", "validation", "test", *ALIASES})
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
NUMBERED = re.compile(r"(?P<split>.+?)[-_.]?(?P<number>\d+)")
NOT_ROWS = {"dataset_info", "dataset_infos", "dataset_dict", "state"}
"""What `datasets` writes beside rows, without `.json`."""


def is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, in order.

    Splits are the files, or numbered files together, of one name; or folders named after splits. A lone name that is
    none of the usual ones is train. As on the hub, data may lie one folder down, in `data`.

    Raises UsageError: there are none; the message says what there is.
    """
    if (folder / "adapter_config.json").is_file():
        raise UsageError(f"{folder} is a PEFT adapter, not data: give texts and labels.")
    files = _files(folder)
    rows = [path for path in files if not _is_beside(path)]
    if rows:
        return _by_name(folder, rows)
    parts = {part.name: _files(part) for part in sorted(folder.iterdir()) if _is_open(part) and part.is_dir()}
    named = {name: found for name, found in parts.items() if found and name in USUAL}
    if named:
        return _distinct(folder, list(named.items()))
    if parts.get("data"):
        return _by_name(folder / "data", parts["data"])
    if files:  # no rows: reading says what they are
        return _by_name(folder, files)
    raise UsageError(_nothing(folder, [name for name, found in parts.items() if found]))


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if _is_open(path) and path.is_file() and kind_of(path).format]


def _is_open(path: Path) -> bool:
    return path.name[0] not in "._"


def _is_beside(path: Path) -> bool:
    """Whether a .json file is no list of rows but settings, a map of labels, or the like."""
    kind = kind_of(path)
    if kind.format != "json" or kind.stem in USUAL:
        return False
    if kind.stem in NOT_ROWS:
        return True
    with naming(str(path)), opened(path, kind) as stream:
        start: bytes = stream.peek(1)  # type: ignore[attr-defined]
        if json_rows.is_list(start, "json"):
            return not json_rows.is_list(start, "jsonl")
        lines = [line for line, _ in zip(filter(bytes.strip, stream), range(2), strict=False)]
    return len(lines) < 2 or not all(map(_is_object, lines))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json_rows.parse(line), Mapping)
    except Flaw:
        return False


def _by_name(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    shards: dict[str, list[Path]] = {}
    for path in files:
        stem = kind_of(path).stem
        match = SHARD.fullmatch(stem)
        key = (match["split"] if match else stem) + path.name[len(stem) :].lower()
        shards.setdefault(key, []).append(path)
    groups = _numbered([(kind_of(Path(key)).stem, paths) for key, paths in shards.items()])
    if len(groups) == 1:
        name, paths = groups[0]
        split = ALIASES.get(name, name)
        return {split if split in ("validation", "test") else "train": paths}
    return _distinct(folder, groups)


def _numbered(groups: Sequence[tuple[str, list[Path]]]) -> list[tuple[str, list[Path]]]:
    """Groups in which train-1, train-2, … are one: names of usual splits with numbers that count from 0 or 1."""
    parts: dict[str, dict[int, tuple[str, list[Path]]]] = {}
    for name, paths in groups:
        match = NUMBERED.fullmatch(name)
        if match and match["split"] in USUAL and len(paths) == 1:
            parts.setdefault(match["split"], {})[int(match["number"])] = (name, paths)
    joined = {
        split: [numbers[number][1][0] for number in sorted(numbers)]
        for split, numbers in parts.items()
        if sorted(numbers) in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    }
    taken = {name for split in joined for name, _ in parts[split].values()}
    return [*((name, paths) for name, paths in groups if name not in taken), *joined.items()]


def _distinct(folder: Path, groups: Sequence[tuple[str, list[Path]]]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for name, paths in groups:
        split = ALIASES.get(name, name)
        if split in splits:
            raise UsageError(
                f"{folder} has more than one file for split '{split}', one of them {paths[0].name}. Keep one."
            )
        splits[split] = paths
    return splits


def _nothing(folder: Path, below: Sequence[str]) -> str:
    if below:
        return f"{folder} has no data files, but folders with some: {', '.join(below[:10])}. Give one of these."
    others = [f"{path.name} is {told[0]}: {told[1]}" for path in sorted(folder.iterdir()) if (told := foreign(path))]
    return (
        f"{folder} has no data files. Allowed: {ALLOWED}, each named after its split: train.parquet, validation.csv, "
        f"test.jsonl.{f' {others[0]}.' if others else ''}"
    )
