"""Which texts a model has learned from: hashes of them, in a file of their own beside its weights.

    training-texts.safetensors    `texts`: 64-bit hashes, ascending, without repeats
                                  in its header: `format`, and `complete`, which is "false" where some of what the
                                  model began with (a teacher, a fine-tuned classifier) does not tell its texts

Hashes have no salt, so that a student can take over those of its teachers. Whoever has the file can find out whether a
text that they have was trained on. So a model that is given away should go without it: nothing but the check for such
rows reads it, and where it is missing, rows count as not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from exitkit.errors import ExitkitError

Hashes = npt.NDArray[np.uint64]

FILE = "training-texts.safetensors"
FORMAT = 1
KIND = b"exitkit-texts-1"


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What is known of the texts that a model has learned from."""

    hashes: Hashes  # ascending, without repeats
    complete: bool  # False: it has learned from other texts too

    def __len__(self) -> int:
        return len(self.hashes)


NOTHING = Fingerprints(np.empty(0, dtype=np.uint64), complete=True)
UNKNOWN = Fingerprints(np.empty(0, dtype=np.uint64), complete=False)


def hashed(texts: Iterable[Sequence[str]]) -> Hashes:
    """A hash of each row [N], as `splits.texts` gives them."""
    return np.frombuffer(b"".join(map(_hashed, texts)), dtype="<u8").astype(np.uint64)


def _hashed(parts: Sequence[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=8, person=KIND)
    for part in parts:
        plain = part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(plain) + plain)  # else ("ab", "c") were ("a", "bc")
    return digest.digest()


def of_texts(texts: Iterable[Sequence[str]]) -> Fingerprints:
    """Of rows that a model learns from."""
    return Fingerprints(np.unique(hashed(texts)), complete=True)


def joined(parts: Iterable[Fingerprints]) -> Fingerprints:
    """Of a model that has learned from all of these."""
    known = [NOTHING, *parts]
    return Fingerprints(np.unique(np.concatenate([one.hashes for one in known])), all(one.complete for one in known))


def of_source(source: str | Path, has_learned: bool) -> Fingerprints:
    """Of what a model starts from or is taught by: a folder, with or without our file, or an id.

    Without the file all is known of one that has not learned to answer: what it was pre-trained on does not count.
    """
    if (Path(source) / FILE).exists():
        return read(Path(source))
    return UNKNOWN if has_learned else NOTHING


def write(folder: Path, fingerprints: Fingerprints) -> None:
    """Write the file into an existing folder."""
    about = {"format": str(FORMAT), "complete": str(fingerprints.complete).lower()}
    save_file({"texts": fingerprints.hashes}, folder / FILE, about)


def read(folder: Path) -> Fingerprints:
    """What a model's folder tells; nothing is known where it has no such file.

    Raises ExitkitError: the file is damaged, or of a newer exitkit.
    """
    file = folder / FILE
    if not file.exists():
        return UNKNOWN
    otherwise = "Remove it, and rows are not checked against those that the model was trained on"
    try:
        with safe_open(file, "numpy") as opened:
            about = opened.metadata() or {}
            if about.get("format", "").isdigit() and int(about["format"]) > FORMAT:
                raise ExitkitError(
                    f"{file} has format {about['format']} and was made by a newer exitkit; this one reads format "
                    f"{FORMAT}. Update exitkit. {otherwise}."
                )
            hashes = opened.get_tensor("texts")
    except (SafetensorError, OSError) as error:
        raise ExitkitError(f"{file} is damaged: {' '.join(str(error).split())}. {otherwise}.") from None
    if about.get("format") != str(FORMAT) or hashes.dtype != np.uint64 or hashes.ndim != 1:
        raise ExitkitError(f"{file} is damaged: it does not hold hashes of texts. {otherwise}.")
    return Fingerprints(np.unique(hashes), about.get("complete") == "true")
