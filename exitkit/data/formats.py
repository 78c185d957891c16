"""The table of formats: what a file holds, said by its name, for training and for prediction alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from exitkit.data.conll import CONLL
from exitkit.errors import UsageError

FORMATS: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    **{suffix: "conllu" if suffix == ".conllu" else "conll" for suffix in CONLL},
}
"""Formats by suffix, in small letters. Prediction reads plain lines too, from files of any other name."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ALLOWED = f"files ending in {', '.join(FORMATS)}, in any case; all but parquet also with {', '.join(COMPRESSIONS)}"

SHEET = "save the sheet as csv"
FOREIGN: Mapping[str, tuple[str, str]] = {
    ".xlsx": ("an Excel workbook", SHEET),
    ".xlsm": ("an Excel workbook", SHEET),
    ".xls": ("an Excel workbook", SHEET),
    ".ods": ("an OpenDocument sheet", SHEET),
    ".docx": ("a Word document", "save it as plain text"),
    ".pdf": ("a PDF document", "save its text"),
    ".zip": ("a zip archive", "unpack it"),
    ".tar": ("a tar archive", "unpack it"),
    ".7z": ("a 7z archive", "unpack it"),
    ".arrow": ("an Arrow file", "load it with datasets.Dataset.from_file and write it with to_parquet"),
    ".feather": ("a Feather file", "load it with pandas.read_feather and write it with to_parquet"),
    ".orc": ("an ORC file", "load it with pandas.read_orc and write it with to_parquet"),
    ".avro": ("an Avro file", "write it as parquet"),
    ".pkl": ("a pickle, which can run code when it is read", "write its data as parquet"),
    ".pickle": ("a pickle, which can run code when it is read", "write its data as parquet"),
    ".npy": ("a NumPy file", "write its data as parquet"),
    ".npz": ("a NumPy file", "write its data as parquet"),
    ".h5": ("an HDF5 file", "write its data as parquet"),
    ".hdf5": ("an HDF5 file", "write its data as parquet"),
    ".db": ("a database", "export the table as csv"),
    ".sqlite": ("an SQLite database", "export the table as csv"),
    ".safetensors": ("a file of weights", "give a file of texts"),
}
"""What else people bring, by suffix: what it is, and the way out."""


class Kind(NamedTuple):
    """What a file's name says of it."""

    stem: str  # the name without the suffixes that say the rest
    format: str | None  # a value of FORMATS; None: the name says none
    compression: str | None  # one of COMPRESSIONS


def kind_of(path: Path) -> Kind:
    """What the name of a file says; nothing is opened."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else None
    bare = path.with_suffix("") if compression else path
    format = FORMATS.get(bare.suffix.lower())
    return Kind(bare.stem if format else bare.name, format, compression)


def foreign(path: Path) -> tuple[str, str] | None:
    """What a file is and the way out, where its name says that it is none of ours."""
    bare = path.with_suffix("") if kind_of(path).compression else path
    return FOREIGN.get(bare.suffix.lower())


def check_readable(path: Path, kind: Kind) -> None:
    """Raise UsageError for a file that is no data by its name, or cannot be read through its compression."""
    if kind.format == "parquet" and kind.compression:
        raise UsageError(
            f"a parquet file cannot be read through {kind.compression}; unpack it first (parquet compresses its "
            "columns itself)"
        )
    if kind.format is None and (told := foreign(path)):
        raise UsageError(f"this is {told[0]}; {told[1]}. Allowed: {ALLOWED}")
