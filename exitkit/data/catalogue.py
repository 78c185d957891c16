"""What --data and Python accept as data, and how it is found. No row is read here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pandas as pd
import pyarrow as pa

from exitkit.data import demo
from exitkit.data.folders import ALIASES, is_saved, splits_in
from exitkit.data.formats import ALLOWED, kind_of
from exitkit.data.opening import naming
from exitkit.data.tables import (
    Table,
    check_is_table,
    concatenate,
    from_columns,
    from_dataset,
    from_records,
    read_table,
)
from exitkit.errors import ExitkitError, UsageError, one_of

Source: TypeAlias = str | Path | datasets.Dataset | datasets.DatasetDict | pd.DataFrame | Sequence[Any]
"""A hub dataset `owner/name[:config]`, a folder, a file, `demo:NAME`, or data in memory: a Dataset, a
DatasetDict, a DataFrame, a list of dicts, of texts, or of (text, label)."""

IN_MEMORY = "in memory"
HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<config>[^/:]+))?")


@dataclass(frozen=True)
class Catalogue:
    """A source that has been found: its splits by name, none of them read yet."""

    source: str
    revision: str | None
    tables: Mapping[str, Callable[[], Table]]

    def table(self, split: str) -> Table:
        """One split; people also write other names for what is called validation here.

        Raises UsageError: there is no such split.
        """
        known = split if split in self.tables else ALIASES.get(split, split)
        if known not in self.tables:
            raise UsageError(f"{self.source}: {one_of('split', split, self.tables)} Say which with --split.")
        return self.tables[known]()


def catalogue(source: Source, revision: str | None = None) -> Catalogue:
    """Find a source.

    Raises UsageError: nothing there, or nothing that can be read.
    Raises ExitkitError: the hub cannot be reached.
    """
    if isinstance(source, str) and source.startswith("demo:"):
        return Catalogue(source, None, _demo(source.removeprefix("demo:")))
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_file():
            with naming(str(path)):
                check_is_table(path)
            return Catalogue(str(path.resolve()), None, {"train": _files([path])})
        if path.is_dir():
            return Catalogue(str(path.resolve()), None, _saved(path) if is_saved(path) else _folder(path))
        return _hub(str(source), path, revision)
    return Catalogue(IN_MEMORY, None, _memory(source))


def _demo(name: str) -> dict[str, Callable[[], Table]]:
    if name not in demo.DATASETS:
        raise UsageError(one_of("demo dataset", name, demo.DATASETS))
    return {split: partial(_demo_split, name, split) for split in demo.SIZES}


def _demo_split(name: str, split: str) -> Table:
    return from_columns(demo.DATASETS[name]()[split])


def _folder(folder: Path) -> dict[str, Callable[[], Table]]:
    return {split: _files(files) for split, files in splits_in(folder).items()}


def _saved(folder: Path) -> dict[str, Callable[[], Table]]:
    try:
        with _no_progress_bars():
            return _memory(datasets.load_from_disk(str(folder)))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ExitkitError(
            f"{folder} was written by save_to_disk of datasets, and cannot be read: {error}. Write it again, or as "
            "files: dataset['train'].to_parquet('FOLDER/train.parquet')."
        ) from error


def _files(paths: Sequence[Path]) -> Callable[[], Table]:
    return cache(lambda: concatenate([read_table(path) for path in paths]))


def _memory(source: Any) -> dict[str, Callable[[], Table]]:
    if isinstance(source, datasets.DatasetDict):
        usual = {name: ALIASES.get(name, name) for name in source}
        return {
            name if usual[name] in source else usual[name]: partial(from_dataset, data) for name, data in source.items()
        }
    if isinstance(source, datasets.Dataset):
        return {"train": lambda: from_dataset(source)}
    if isinstance(source, pd.DataFrame):
        names = [str(name) for name in source.columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"the DataFrame has more than one column named {', '.join(map(repr, twice))}. Rename one.")
        return {"train": lambda: from_columns({str(name): source[name] for name in source.columns})}
    if isinstance(source, Sequence) and source and not isinstance(source, str | bytes):
        table = _listed(source)
        return {"train": lambda: table}
    raise UsageError(
        f"data of type {type(source).__name__} cannot be read{'' if source else ': it is empty'}. Allowed: "
        "a path, a Dataset, a DatasetDict, a DataFrame, a list of dicts, of texts, or of (text, label)."
    )


def _listed(source: Sequence[Any]) -> Table:
    if all(isinstance(row, Mapping) for row in source):
        return from_records(source)
    if all(isinstance(row, str) for row in source):
        return from_columns({"text": source})
    if all(isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2 for row in source):
        return from_columns({"text": [row[0] for row in source], "label": [row[1] for row in source]})
    kinds = ", ".join(sorted({type(row).__name__ for row in source}))
    raise UsageError(
        f"a list must hold only dicts, only texts, or only (text, label); found {kinds}. Write pairs of "
        "texts as dicts with text and text_pair."
    )


def _hub(source: str, path: Path, revision: str | None) -> Catalogue:
    """A hub dataset, for a source that is no path; a mistyped path ends here too."""
    match = HUB.fullmatch(source)
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, siblings, n=1)
    if match is None or close or kind_of(path).format:
        hint = f" Did you mean '{path.with_name(close[0])}'?" if close else ""
        raise UsageError(
            f"no file or folder '{source}'.{hint} Allowed: {ALLOWED}, a "
            "folder of such files, a hub dataset written owner/name or owner/name:config, or demo:NAME."
        )
    with _told_hub(source), _no_progress_bars():
        loaded = datasets.load_dataset(match["repository"], match["config"], revision=revision)
    return Catalogue(source, revision or _commit(loaded), _memory(loaded))


@contextmanager
def _told_hub(source: str) -> Iterator[None]:
    try:
        yield
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UsageError(f"'{source}' is neither a file or folder here nor a dataset on the hub: {error}") from error
    except ConnectionError as error:
        raise ExitkitError(
            f"no file or folder '{source}' here, and the hub cannot be reached to look for a dataset of "
            f"that name ({error}). Without a network, use a folder with one file per split: where there is "
            "a network, datasets.load_dataset(...)['train'].to_parquet('FOLDER/train.parquet') writes one."
        ) from error
    except ValueError as error:
        raise UsageError(
            f"hub dataset '{source}': {error}\nWrite a dataset with several configurations as owner/name:config."
        ) from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ExitkitError(f"hub dataset '{source}' cannot be loaded: {error}") from error


def _commit(loaded: datasets.DatasetDict) -> str | None:
    """The commit that was read, out of the addresses of the files that were downloaded."""
    addresses = next(iter(loaded.values())).download_checksums or {}
    return next((match[1] for match in (re.search(r"@([0-9a-f]{40})/", str(a)) for a in addresses) if match), None)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Progress is for callers to show; `datasets` would draw bars of its own."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
