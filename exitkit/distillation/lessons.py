"""What teachers say of the training rows: from disk where it is kept, else by asking them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from exitkit.engine.encoders.base import Encoder
from exitkit.engine.heads import Pooling
from exitkit.engine.internals import Internals
from exitkit.engine.loop import full_pass
from exitkit.engine.stream import Batch, packing_order


@dataclass(frozen=True)
class Layout:
    """The record of a row, as one vector: logits, then layer by layer pooled states, states, attention scores, and
    queries, keys and values.

    Logits and pooled states are of the row's units: itself, or in tagging the words that all teachers see.
    """

    classes: int  # C; 0 when answers are not read
    width: int  # d of the teacher
    heads: int  # H of the teacher
    hidden: tuple[int, ...]  # the teacher's layers
    scores: tuple[int, ...]
    vectors: tuple[int, ...] = ()
    pooled: tuple[int, ...] = ()
    pooling: Pooling = "mean"

    def parts(self, tokens: int, units: int) -> list[int]:
        """Numbers in each part of the record of a row of so many tokens and units."""
        states, pairs = tokens * self.width, tokens**2 * self.heads
        return [
            units * self.classes,
            *(units * self.width for _ in self.pooled),
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
        return bool(self.hidden or self.scores or self.vectors or self.pooled)


class Lessons:
    """The tutor of a run: all that its phases read of the teachers, row by row.

    Every record is computed in fp32 outside of autocast, whether it is kept or not, so that both give the same numbers
    up to rounding. Logits of several teachers are averaged (the geometric mean of their probabilities, 1503.02531,
    section 3), in tagging word by word, of the words that all of them see; only a single model can be looked into.

    Args:
        teachers: in evaluation mode, on `device`.
        encoded: the training rows in order, as the tokenizer of each teacher, and then that of `inner`, has them; no
            padding, no labels. In tagging with `words`.
        student: whose notes are compared.
        reads: what each phase looks at.
        folder: where records are kept.
        budget: bytes on disk, of all phases together.
        device: where everything runs.
        inner: who is looked into, if not the first teacher.
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
        inner: Teacher | None = None,
    ) -> None:
        self.teachers, self.encoded, self.student, self.reads, self.device = teachers, encoded, student, reads, device
        self.asked = [*teachers, *([] if inner is None else [inner])]
        self.looked_into = 0 if inner is None else len(teachers)  # its number among them
        self.lengths = [len(ids) for ids in encoded[self.looked_into]["input_ids"][:]]
        self.layouts = {phase: layout(self.asked[self.looked_into], read) for phase, read in reads.items()}
        self.contents = [one.content() for one in self.asked]
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

    def notes(self, phase: str) -> Internals:
        """An empty record of what a phase looks at inside the student."""
        read = self.reads[phase]
        hidden, scores, vectors, pooled = (
            [own for own, _ in pairs] for pairs in (read.hidden, read.scores, read.vectors, read.pooled)
        )
        return Internals(self.student, hidden, scores, vectors, pooled)

    def lesson(self, phase: str, rows: Tensor, batch: Batch, own: Internals) -> Lesson:
        """What the teachers say of rows [B] that are this batch of the student's, beside the student's notes."""
        numbers, read, one = rows.tolist(), self.reads[phase], self.layouts[phase]
        if one.nothing:
            return Lesson(None)
        records = [
            torch.split(record, one.parts(self.lengths[row], len(self.common[row])))
            for row, record in zip(numbers, self.records(phase, numbers), strict=True)
        ]
        places, known = self._units(numbers, batch)

        def of_units(part: int, width: int) -> Tensor:
            return torch.cat([record[part] for record in records]).view(-1, width)[places]

        pooled = {layer: of_units(part, one.width) for part, layer in enumerate(one.pooled, start=1)}
        lesson = Lesson(
            _spread(of_units(0, one.classes), known) if read.answers else None,
            known,
            pooled=tuple((_of(own.of_units(ours), known), pooled[theirs]) for ours, theirs in read.pooled),
        )
        if not read.tokenwise:
            return lesson
        packed = [records[place] for place in packing_order(batch["attention_mask"].sum(dim=1).tolist())]
        parts = iter(range(1 + len(one.pooled), len(one.parts(0, 0))))

        def of(layers: tuple[int, ...], *shape: int) -> dict[int, Tensor]:
            here = zip(layers, islice(parts, len(layers)), strict=True)
            return {layer: torch.cat([record[part] for record in packed]).view(-1, *shape) for layer, part in here}

        hidden, scores, vectors = of(one.hidden, one.width), of(one.scores, one.heads), of(one.vectors, 3, one.width)
        return replace(
            lesson,
            hidden=tuple((own.states(ours), hidden[theirs]) for ours, theirs in read.hidden),
            scores=tuple((own.attention(ours), scores[theirs]) for ours, theirs in read.scores),
            vectors=tuple((own.attended(ours), vectors[theirs]) for ours, theirs in read.vectors),
            lengths=own.lengths,
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
                self._keep(mean, rows, found)
            if one.inside:
                self._look(one, rows, found)
        return [torch.cat(record) for record in found]

    def _said(self, teacher: int, rows: list[int]) -> Tensor:
        """Logits [U, C] by a teacher of the units that all of them see, row by row."""
        return self._everybodys(teacher, rows, self.teachers[teacher].answer(self._batch(teacher, rows)))

    def _everybodys(self, number: int, rows: list[int], found: Tensor) -> Tensor:
        """Of what was found [U, …] in a model's own units, that of units that all see."""
        seen = np.concatenate([np.isin(self.units[number][row], self.common[row]) for row in rows])
        return found if seen.all() else found[torch.from_numpy(seen).to(found.device)]

    def _keep(self, of_units: Tensor, rows: list[int], found: list[list[Tensor]]) -> None:
        """Add to the records what [U, …] was found of their units, row by row."""
        pieces = torch.split(of_units, [len(self.common[row]) for row in rows])
        for record, piece in zip(found, pieces, strict=True):
            record.append(piece.float().flatten())

    def _units(self, rows: Sequence[int], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Where to find what the teachers say of the student's units, and of which it is.

        Returns numbers [U'] into the units that are kept of these rows, end to end, and which [U] of the student's
        units those are; None = all of them.
        """
        words = batch.get("words")
        ours = units_of_rows(None if words is None else words.tolist(), len(rows))
        places, answered, start = [], [], 0
        for row, own in zip(rows, ours, strict=True):
            common = self.common[row]
            answered.append(np.isin(own, common))
            places.append(start + np.searchsorted(common, own[answered[-1]]))
            start += len(common)
        where, known = (torch.from_numpy(np.concatenate(parts)).to(self.device) for parts in (places, answered))
        return where, None if len(where) == len(known) else known

    def _look(self, one: Layout, rows: list[int], found: list[list[Tensor]]) -> None:
        """Add to the records what is inside the model that is looked into."""
        model = self.asked[self.looked_into].model
        notes = Internals(model.encoder, one.hidden, one.scores, one.vectors, one.pooled, one.pooling)
        full_pass(model, self._batch(self.looked_into, rows), notes.embedded, notes.between)
        for layer in one.pooled:
            self._keep(self._everybodys(self.looked_into, rows, notes.of_units(layer)), rows, found)
        lengths = [self.lengths[row] for row in rows]
        order = packing_order(lengths)
        ordered = [lengths[place] for place in order]
        parts = [torch.split(notes.states(layer), ordered) for layer in one.hidden]
        parts += [torch.split(notes.attention(layer), [tokens**2 for tokens in ordered]) for layer in one.scores]
        parts += [torch.split(notes.attended(layer), ordered) for layer in one.vectors]
        for pieces in parts:
            for place, piece in zip(order, pieces, strict=True):
                found[place].append(piece.float().flatten())

    def _batch(self, number: int, rows: list[int]) -> dict[str, Tensor]:
        encoded, tokenizer = self.encoded[number].select(rows), self.asked[number].tokenizer
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


def _of(units: Tensor, known: Tensor | None) -> Tensor:
    """Of rows [U, d] those of known units; None = all are."""
    return units if known is None else units[known]


def _spread(found: Tensor, known: Tensor | None) -> Tensor:
    """What was found [U', C] of known units, with zeros for the others: [U, C]."""
    if known is None:
        return found
    return found.new_zeros(len(known), found.shape[1]).masked_scatter(known[:, None], found)


def layout(teacher: Teacher, reads: Reads) -> Layout:
    """What is kept of a row for a phase; the same for phases that read the same."""
    config = teacher.model.stock.config
    return Layout(
        classes=teacher.model.shape.labels if reads.answers else 0,
        width=teacher.model.shape.width if reads.hidden or reads.vectors or reads.pooled else 0,
        heads=int(config.num_attention_heads) if reads.scores else 0,
        hidden=tuple(sorted({theirs for _, theirs in reads.hidden})),
        scores=tuple(sorted({theirs for _, theirs in reads.scores})),
        vectors=tuple(sorted({theirs for _, theirs in reads.vectors})),
        pooled=tuple(sorted({theirs for _, theirs in reads.pooled})),
        pooling=reads.pooling if reads.pooled else "mean",
    )
