"""What teachers say of the training rows: from disk where it is kept, else by asking them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from exitkit.data.batches import batches
from exitkit.distillation.store import NUMBER, Store, kept_rows, shares
from exitkit.distillation.teacher import Teacher
from exitkit.distiller import Lesson, Reads
from exitkit.encoders.base import Encoder
from exitkit.inside import Inside
from exitkit.loop import full_pass
from exitkit.stream import packing_order


@dataclass(frozen=True)
class Layout:
    """The record of a row, as one vector: logits, then layer by layer states, attention scores, queries and keys."""

    classes: int  # C; 0 when answers are not read
    width: int  # d of the teacher
    heads: int  # H of the teacher
    hidden: tuple[int, ...]  # the teacher's layers
    scores: tuple[int, ...]
    vectors: tuple[int, ...] = ()

    def parts(self, tokens: int) -> list[int]:
        """Numbers in each part of the record of a row of so many tokens."""
        states, pairs = tokens * self.width, tokens**2 * self.heads
        return [
            self.classes,
            *(states for _ in self.hidden),
            *(pairs for _ in self.scores),
            *(3 * states for _ in self.vectors),
        ]

    @property
    def nothing(self) -> bool:
        """Whether the teacher is not asked at all."""
        return self.size(1) == 0

    def size(self, tokens: int) -> int:
        """Numbers in a record."""
        return sum(self.parts(tokens))


class Lessons:
    """The tutor of a run: all that its phases read of the teachers, row by row.

    Every record is computed in fp32 outside of autocast, whether it is kept or not, so that both give the same numbers
    up to rounding. Logits of several teachers are averaged (the geometric mean of their probabilities, 1503.02531,
    section 3); only a single teacher can be looked into.

    Args:
        teachers: in evaluation mode, on `device`.
        encoded: the training rows in order, as each teacher's tokenizer has them; no padding, no labels.
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
        sizes = {one: [one.size(tokens) for tokens in self.lengths] for one in distinct}
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

    def lesson(self, phase: str, rows: Tensor, mask: Tensor, own: Inside) -> Lesson:
        """What the teachers say of rows [B] with the student's mask [B, N], beside the student's notes."""
        numbers, read, one = rows.tolist(), self.reads[phase], self.layouts[phase]
        if one.nothing:
            return Lesson(None)
        records = self.records(phase, numbers)
        logits = torch.stack([record[: one.classes] for record in records]) if read.answers else None
        if not read.inside:
            return Lesson(logits)
        packed = [
            torch.split(records[place], one.parts(self.lengths[numbers[place]]))
            for place in packing_order(mask.sum(dim=1).tolist())
        ]
        parts = iter(range(1, len(one.parts(0))))

        def of(layers: tuple[int, ...], *shape: int) -> dict[int, Tensor]:
            here = zip(layers, islice(parts, len(layers)), strict=True)
            return {layer: torch.cat([record[part] for record in packed]).view(-1, *shape) for layer, part in here}

        hidden, scores, vectors = of(one.hidden, one.width), of(one.scores, one.heads), of(one.vectors, 3, one.width)
        return Lesson(
            logits,
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
                said = [teacher.answer(self._batch(number, rows)) for number, teacher in enumerate(self.teachers)]
                for record, logits in zip(found, torch.stack(said).mean(dim=0), strict=True):
                    record.append(logits)
            if len(one.parts(0)) > 1:
                self._look(one, rows, found)
        return [torch.cat(record) for record in found]

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
