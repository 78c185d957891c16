"""Teachers' outputs on disk: one file of raw fp32 numbers, a record per row of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exitkit.errors import ExitkitError
from exitkit.process import outputs
from exitkit.progress import bar

NUMBER = 4  # bytes of an fp32 number
BATCH = 32


class Store:
    """Records of as many rows as fit into a budget, short ones first, so that most rows fit.

    Args:
        file: its name says what is in it, so that a file that is there holds just that.
        sizes: numbers in the record of each row of the data.
        budget: bytes at most.
    """

    def __init__(self, file: Path, sizes: Sequence[int], budget: int) -> None:
        self.file = file
        order, ends = kept_rows(sizes, budget)
        self.order = order  # the rows that are kept, as they lie in the file
        self.places = {row: (end - sizes[row], end) for row, end in zip(order, ends, strict=True)}
        self.bytes = NUMBER * (ends[-1] if ends else 0)

    def fill(self, ask: Callable[[list[int]], list[Tensor]]) -> None:
        """Write all records, unless the file is there: `ask(rows)` gives those of some rows.

        The batches are always the same ones, so that a resumed run gets the same bits. Of two runs that share a file
        each writes its own, and the last one stands.

        Raises ExitkitError: the disk is full, or nothing can be written there.
        """
        if not self.bytes or (self.file.exists() and self.file.stat().st_size == self.bytes):
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with outputs.growing(self.file) as out, bar("asking the teacher", len(self.order)) as advance:
                for start in range(0, len(self.order), BATCH):
                    rows = self.order[start : start + BATCH]
                    out.write(torch.cat(ask(rows)).float().cpu().numpy().astype("<f4", copy=False).tobytes())
                    advance(len(rows))
        except OSError as error:
            raise ExitkitError(
                f"{self.file.parent}: cannot keep {self.bytes / 1e6:,.0f} MB of the teacher's outputs there: "
                f"{outputs.why(error)}. Free some space, lower --cache-size (0 asks the teacher every time), or "
                "name a folder on another disk with --cache."
            ) from error

    def read(self, row: int) -> Tensor | None:
        """The record of a row [numbers], or None when it is not kept."""
        if row not in self.places:
            return None
        start, end = self.places[row]
        return torch.from_numpy(np.array(self._numbers[start:end])) if end > start else torch.zeros(0)

    @cached_property
    def _numbers(self) -> np.memmap[tuple[int, ...], np.dtype[np.float32]]:
        return np.memmap(self.file, dtype="<f4", mode="r")


def kept_rows(sizes: Sequence[int], budget: int) -> tuple[list[int], list[int]]:
    """The rows that fit into so many bytes, shortest first, and where each record ends, counted in numbers."""
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    ends = list(takewhile(lambda end: NUMBER * end <= budget, accumulate(sizes[row] for row in order)))
    return order[: len(ends)], ends


def shares(needs: Sequence[int], budget: int) -> list[int]:
    """How much of a budget each of several files gets: small ones all that they need, large ones what is left."""
    given = [0] * len(needs)
    for number in sorted(range(len(needs)), key=needs.__getitem__):
        given[number] = min(needs[number], budget)
        budget -= given[number]
    return given
