"""What teachers say of the training rows: from disk where it is kept, else by asking them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor

from exitkit.data.batches import batches, present
from exitkit.distillation.store import NUMBER, Store, kept_rows, shares
from exitkit.distillation.teacher import Teacher
from exitkit.distiller import Lesson, Reads
from exitkit.encoders.base import Encoder
from exitkit.inside import Inside
from exitkit.loop import full_pass
from exitkit.stream import Batch, packing_order


@dataclass(frozen=True)
class Layout:
    """The record of a row, as one vector: logits, then layer by layer states, attention scores, queries and keys.

    Logits are of the row's units: itself, or in tagging the words that all teachers see.
    """

    classes: int  # C; 0 when answers are not read
    width: int  # d of the teacher
    heads: int  # H of the teacher
    hidden: tuple[int, ...]  # the teacher's layers
    scores: tuple[int, ...]
    vectors: tuple[int, ...] = ()

    def parts(self, tokens: int, units: int) -> list[int]:
        """Numbers in each part of the record of a row of so many tokens and units."""
        states, pairs = tokens * self.width, tokens**2 * self.heads
        return [
            units * self.classes,
            *(states for _ in self.hidden),
            *(pairs for _ in self.scores),
            *(3 * states for _ in self.vectors),
        ]

    @property
    def nothing(self) -> bool:
        """Whether the teacher is not asked at all."""
        return self.size(1, 1) == 0

    def size(self, tokens: int, units: int) -> int:
        """Numbers in a record."""
        return sum(self.parts(tokens, units))

    @property
    def inside(self) -> bool:
        """Whether there is more than logits."""
        return bool(self.hidden or self.scores or self.vectors)


class Lessons:
    """The tutor of a run: all that its phases read of the teachers, row by row.

    Every record is computed in fp32 outside of autocast, whether it is kept or not, so that both give the same numbers
    up to rounding. Logits of several teachers are averaged (the geometric mean of their probabilities, 1503.02531,
    section 3), in tagging word by word, of the words that all of them see; only a single teacher can be looked into.

    Args:
        teachers: in evaluation mode, on `device`.
        encoded: the training rows in order, as each teacher's tokenizer has them; no padding, no labels. In tagging
            with `words`.
        student: whose notes are compared.
        reads: what each phase looks at.
        folder: where records are kept.
        budget: bytes on disk, of all phases together.
        device: where everything runs.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        encoded: Sequence[Dataset],
        student: Encoder,
        reads: Mapping[str, Reads],
        folder: Path,
        budget: int,
        device: torch.device,
    ) -> None:
        self.teachers, self.encoded, self.student, self.reads, self.device = teachers, encoded, student, reads, device
        self.lengths = [len(ids) for ids in encoded[0]["input_ids"][:]]
        self.layouts = {phase: layout(teachers[0], read) for phase, read in reads.items()}
        self.contents = [teacher.content() for teacher in teachers]
        distinct = list(dict.fromkeys(self.layouts.values()))
        self.units = [
            units_of_rows(one["words"][:] if "words" in one.column_names else None, len(one)) for one in encoded
        ]
        self.common = [reduce(np.intersect1d, of_row) for of_row in zip(*self.units, strict=True)]
        counts = [(tokens, len(units)) for tokens, units in zip(self.lengths, self.common, strict=True)]
        sizes = {one: [one.size(*count) for count in counts] for one in distinct}
        given = shares([NUMBER * sum(sizes[one]) for one in distinct], budget)
        self.stores = {
            one: Store(folder / f"{self._name(one, sizes[one], share)}.f32", sizes[one], share)
            for one, share in zip(distinct, given, strict=True)
        }

    def prepare(self, phase: str) -> None:
        """Ask about all rows that are kept."""
        one = self.layouts[phase]
        if not one.nothing:
            self.stores[one].fill(lambda rows: self._ask(one, rows))

    def notes(self, phase: str) -> Inside:
        """An empty record of what a phase looks at inside the student."""
        read = self.reads[phase]
        return Inside(self.student, *([own for own, _ in pairs] for pairs in (read.hidden, read.scores, read.vectors)))

    def lesson(self, phase: str, rows: Tensor, batch: Batch, own: Inside) -> Lesson:
        """What the teachers say of rows [B] that are this batch of the student's, beside the student's notes."""
        numbers, read, one = rows.tolist(), self.reads[phase], self.layouts[phase]
        if one.nothing:
            return Lesson(None)
        records = self.records(phase, numbers)
        logits, answered = self._answers(one, records, numbers, batch) if read.answers else (None, None)
        if not read.inside:
            return Lesson(logits, answered)
        packed = [
            torch.split(records[place], self._parts(one, numbers[place]))
            for place in packing_order(batch["attention_mask"].sum(dim=1).tolist())
        ]
        parts = iter(range(1, len(one.parts(0, 0))))

        def of(layers: tuple[int, ...], *shape: int) -> dict[int, Tensor]:
            here = zip(layers, islice(parts, len(layers)), strict=True)
            return {layer: torch.cat([record[part] for record in packed]).view(-1, *shape) for layer, part in here}

        hidden, scores, vectors = of(one.hidden, one.width), of(one.scores, one.heads), of(one.vectors, 3, one.width)
        return Lesson(
            logits,
            answered,
            tuple((own.states(ours), hidden[theirs]) for ours, theirs in read.hidden),
            tuple((own.attention(ours), scores[theirs]) for ours, theirs in read.scores),
            tuple((own.attended(ours), vectors[theirs]) for ours, theirs in read.vectors),
            own.lengths,
        )

    def records(self, phase: str, rows: list[int]) -> list[Tensor]:
        """The record of each row [numbers], on the device."""
        one = self.layouts[phase]
        found = {row: self.stores[one].read(row) for row in rows}
        missing = [row for row, record in found.items() if record is None]
        asked = dict(zip(missing, self._ask(one, missing), strict=True)) if missing else {}
        records = [asked[row] if record is None else record for row, record in ((row, found[row]) for row in rows)]
        return [record.to(self.device) for record in records]

    def told(self, phase: str) -> dict[str, Any]:
        """What of a phase is kept on disk."""
        store = self.stores[self.layouts[phase]]
        return {"rows": len(store.order), "of": len(self.lengths), "bytes": store.bytes}

    @torch.no_grad()
    def _ask(self, one: Layout, rows: list[int]) -> list[Tensor]:
        """Records of some rows, in one batch."""
        found: list[list[Tensor]] = [[] for _ in rows]
        with torch.autocast(self.device.type, enabled=False):
            if one.classes:
                mean = torch.stack([self._said(number, rows) for number in range(len(self.teachers))]).mean(dim=0)
                for record, logits in zip(
                    found, torch.split(mean, [len(self.common[row]) for row in rows]), strict=True
                ):
                    record.append(logits.flatten())
            if one.inside:
                self._look(one, rows, found)
        return [torch.cat(record) for record in found]

    def _said(self, teacher: int, rows: list[int]) -> Tensor:
        """Logits [U, C] by a teacher of the units that all of them see, row by row."""
        logits = self.teachers[teacher].answer(self._batch(teacher, rows))
        everybodys = np.concatenate([np.isin(self.units[teacher][row], self.common[row]) for row in rows])
        return logits if everybodys.all() else logits[torch.from_numpy(everybodys).to(logits.device)]

    def _answers(
        self, one: Layout, records: Sequence[Tensor], rows: Sequence[int], batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [U, C] of the student's units, and of which of them [U] the teachers say anything; None = of all."""
        words = batch.get("words")
        ours = units_of_rows(None if words is None else words.tolist(), len(rows))
        places, answered, start = [], [], 0
        for row, own in zip(rows, ours, strict=True):
            common = self.common[row]
            answered.append(np.isin(own, common))
            places.append(start + np.searchsorted(common, own[answered[-1]]))
            start += len(common)
        pieces = [record[: self._parts(one, row)[0]] for record, row in zip(records, rows, strict=True)]
        said = torch.cat(pieces).view(-1, one.classes)[torch.from_numpy(np.concatenate(places)).to(self.device)]
        known = torch.from_numpy(np.concatenate(answered)).to(self.device)
        if len(said) == len(known):
            return said, None
        return said.new_zeros(len(known), one.classes).masked_scatter(known[:, None], said), known

    def _parts(self, one: Layout, row: int) -> list[int]:
        return one.parts(self.lengths[row], len(self.common[row]))

    def _look(self, one: Layout, rows: list[int], found: list[list[Tensor]]) -> None:
        """Add to the records what is inside the teacher."""
        model = self.teachers[0].model
        notes = Inside(model.encoder, one.hidden, one.scores, one.vectors)
        full_pass(model, self._batch(0, rows), notes.embedded, notes.between)
        lengths = [self.lengths[row] for row in rows]
        order = packing_order(lengths)
        ordered = [lengths[place] for place in order]
        parts = [torch.split(notes.states(layer), ordered) for layer in one.hidden]
        parts += [torch.split(notes.attention(layer), [tokens**2 for tokens in ordered]) for layer in one.scores]
        parts += [torch.split(notes.attended(layer), ordered) for layer in one.vectors]
        for pieces in parts:
            for place, piece in zip(order, pieces, strict=True):
                found[place].append(piece.float().flatten())

    def _batch(self, teacher: int, rows: list[int]) -> dict[str, Tensor]:
        encoded, tokenizer = self.encoded[teacher].select(rows), self.teachers[teacher].tokenizer
        (batch,) = batches(encoded, tokenizer, len(rows))
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _name(self, one: Layout, sizes: Sequence[int], budget: int) -> str:
        """16 hex digits over the teachers, what is read of them and the tokens of the rows that are kept, in order."""
        kept, _ = kept_rows(sizes, budget)
        digest = hashlib.sha256(repr((one, self.device.type)).encode())
        for content, encoded in zip(self.contents, self.encoded, strict=True):
            digest.update(content.encode())
            for name in encoded.column_names:
                column = encoded[name][:]
                digest.update(repr([column[row] for row in kept]).encode())
        return digest.hexdigest()[:16]


def units_of_rows(words: Sequence[Sequence[int]] | None, rows: int) -> list[npt.NDArray[np.int64]]:
    """The units of each row by number, ascending: words that have a token, out of the rows of the column `words`.

    Without words a row is its only unit, number 0.
    """
    if words is None:
        return [np.zeros(1, dtype=np.int64)] * rows
    return [np.asarray(present(owners), dtype=np.int64) for owners in words]


def layout(teacher: Teacher, reads: Reads) -> Layout:
    """What is kept of a row for a phase; the same for phases that read the same."""
    config = teacher.model.stock.config
    return Layout(
        classes=teacher.model.shape.labels if reads.answers else 0,
        width=teacher.model.shape.width if reads.hidden or reads.vectors else 0,
        heads=int(config.num_attention_heads) if reads.scores else 0,
        hidden=tuple(sorted({theirs for _, theirs in reads.hidden})),
        scores=tuple(sorted({theirs for _, theirs in reads.scores})),
        vectors=tuple(sorted({theirs for _, theirs in reads.vectors})),
    )
