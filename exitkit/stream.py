"""The packed stream: the real tokens of all sequences still running, end to end, without padding.

Dropping a sequence, halting a word and skipping a layer are one operation here: choosing rows. This file is the only
one that drops any. Sequences are packed in order of their length, because attention runs equal lengths in one call;
`row` remembers where each unit's answer belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Tensor]
"""A padded batch as tokenizers make it: `input_ids` [B, N], `attention_mask` [B, N], `token_type_ids` [B, N] or not,
and in tagging `words` [B, N]: the word each token belongs to, −1 for none."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an encoder embeds."""

    ids: Tensor  # [T]
    types: Tensor | None  # [T] token type ids
    position: Tensor  # [T] place of each token in its own sequence, from 0


@dataclass(frozen=True)
class Stream:
    """The tokens and units of the sequences still running. The loop makes a new one at every step."""

    hidden: Tensor  # [T, d]
    position: Tensor  # [T] place in its own sequence; never renumbered
    lengths: tuple[int, ...]  # [S] tokens of each sequence, on the host
    bounds: Tensor  # [S + 1] sequence s owns rows bounds[s]:bounds[s + 1]
    home: Tensor  # [T] sequence of each token
    owner: Tensor  # [T] unit that a token belongs to; −1 for context only ([CLS] in tagging)
    sequence: Tensor  # [U] sequence of each unit, ascending
    place: Tensor  # [U] place of the unit in its sequence
    anchor: Tensor  # [U] the token that speaks for the unit: the first of a sequence or of a word
    row: Tensor  # [U] the unit's row in the trace
    live: Tensor  # [U] bool, no answer yet
    skipped: Tensor  # [S] layers that the sequence did not run
    active: Tensor | None  # [Q] ascending rows of the tokens that compute; None = all of them
    asking: tuple[int, ...]  # [S] active tokens of each sequence, on the host
    whole: bool  # units are sequences, not words

    @property
    def tokens(self) -> int:
        """T, the tokens that serve as keys and values."""
        return self.hidden.shape[0]

    @property
    def units(self) -> int:
        """U, the units of these sequences, answered words included."""
        return self.row.shape[0]

    @property
    def sequences(self) -> int:
        """S, the sequences still running."""
        return len(self.lengths)

    def carrying(self, hidden: Tensor) -> Stream:
        """The same tokens with new states [T, d]."""
        return self.having(hidden=hidden)

    def having(self, **fields: Any) -> Stream:
        """The same stream with some fields changed; at every layer, hence without the cost of dataclasses.replace."""
        assert fields.keys() <= self.__dict__.keys(), f"a stream has no {sorted(fields.keys() - self.__dict__.keys())}"
        new = object.__new__(Stream)
        new.__dict__.update(self.__dict__, **fields)
        return new


def pack(batch: Batch) -> tuple[Tokens, Stream]:
    """Take the padding out of a batch.

    Returns the tokens to embed and a stream whose `hidden` still is empty ([T, 0]): `stream.carrying(embedded)`
    completes it. Without `words` in the batch every sequence is one unit.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    device, width = ids.device, ids.shape[1]
    in_order = mask.sum(dim=1).tolist()
    order = packing_order(in_order)
    lengths = [in_order[i] for i in order]
    rows = torch.tensor(order, device=device)
    if lengths[0] == width:  # nothing is padded, and `order` is the batch's own

        def flat(column: Tensor) -> Tensor:
            return column.flatten()

        position = torch.arange(width, device=device).expand(len(lengths), width).flatten()
    else:
        real = mask[rows].bool()

        def flat(column: Tensor) -> Tensor:
            return column[rows][real]

        position = (real.cumsum(dim=1) - 1)[real]
    home = torch.repeat_interleave(torch.tensor(lengths, device=device), output_size=sum(lengths))
    bounds = _bounds(lengths, device)
    words = batch.get("words")
    if words is None:
        units = _sequences_as_units(home, bounds, rows, torch.ones_like(rows, dtype=torch.bool))
    else:
        units = _words_as_units(flat(words), home, rows)
    stream = Stream(
        hidden=position.new_empty(len(position), 0, dtype=torch.float32),
        position=position,
        lengths=tuple(lengths),
        bounds=bounds,
        home=home,
        skipped=torch.zeros_like(rows),
        active=None,
        asking=tuple(lengths),
        whole=words is None,
        **units,
    )
    types = batch.get("token_type_ids")
    return Tokens(ids=flat(ids), types=None if types is None else flat(types), position=position), stream


def packing_order(lengths: Sequence[int]) -> list[int]:
    """The order in which rows of these lengths are packed: shorter ones first, else as they come."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def own(batch: Batch, model: int) -> Batch:
    """The tokens that a model (from 0) of a cascade reads: under `MODEL/input_ids` and so on, where it has some.

    Else, and where there is no cascade, those under plain names, which are the full model's.
    """
    prefix = f"{model}/"
    found = {name.removeprefix(prefix): rows for name, rows in batch.items() if name.startswith(prefix)}
    return found or {name: rows for name, rows in batch.items() if "/" not in name}


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a batch in its own order."""

    sequence: Tensor  # [U] row of the batch that each unit belongs to
    place: Tensor  # [U] its place there
    tokens: Tensor  # [U] how many tokens it has


def units_of(batch: Batch) -> Units:
    """Which units a padded batch holds."""
    words, mask = batch.get("words"), batch["attention_mask"]
    rows = torch.arange(mask.shape[0], device=mask.device)
    if words is None:
        return Units(rows, torch.zeros_like(rows), mask.sum(dim=1))
    before = torch.nn.functional.pad(words, (1, 0), value=-2)[:, :-1]
    first = (words >= 0) & (words != before)
    counts = first.sum(dim=1)
    unit = (first.flatten().cumsum(0) - 1)[(words >= 0).flatten()]
    sequence = rows.repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(sequence), device=mask.device) - starts[sequence]
    return Units(sequence, place, torch.bincount(unit, minlength=len(sequence)))


def _sequences_as_units(home: Tensor, bounds: Tensor, rows: Tensor, live: Tensor) -> dict[str, Tensor]:
    return {
        "owner": home,
        "sequence": torch.arange(len(rows), device=rows.device),
        "place": torch.zeros_like(rows),
        "anchor": bounds[:-1],
        "row": rows,
        "live": live,
    }


def _words_as_units(words: Tensor, home: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Number the words of all sequences; the trace counts them sentence by sentence in the batch's own order."""
    previous = torch.cat([words.new_full((1,), -2), words[:-1]])
    new_sequence = torch.cat([home.new_ones(1), home.diff()]) != 0
    first = (words >= 0) & ((words != previous) | new_sequence)
    owner = torch.where(words >= 0, first.cumsum(0) - 1, -1)
    anchor = first.nonzero().squeeze(1)
    sequence = home[anchor]
    counts = torch.bincount(sequence, minlength=len(rows))
    in_batch_order = torch.zeros_like(counts).index_copy(0, rows, counts)
    starts = in_batch_order.cumsum(0) - in_batch_order
    place = torch.arange(len(anchor), device=rows.device) - (counts.cumsum(0) - counts)[sequence]
    return {
        "owner": owner,
        "sequence": sequence,
        "place": place,
        "anchor": anchor,
        "row": starts[rows[sequence]] + place,
        "live": torch.ones_like(anchor, dtype=torch.bool),
    }


@dataclass(frozen=True, slots=True)
class Selection:
    """Some sequences of a stream: their stream, and where its rows were in the whole one."""

    stream: Stream
    tokens: Tensor  # [T'] rows of the kept tokens
    units: Tensor  # [U'] rows of the kept units


def select(stream: Stream, keep: Sequence[bool]) -> Selection:
    """The part of the stream that the sequences with `keep` True make up (`keep` is on the host, one per sequence)."""
    device = stream.hidden.device
    kept = torch.tensor(keep, device=device)  # [S]
    lengths = [n for n, wanted in zip(stream.lengths, keep, strict=True) if wanted]
    asking = [n for n, wanted in zip(stream.asking, keep, strict=True) if wanted]
    kept_tokens = kept[stream.home]
    tokens = _rows_where(kept_tokens, sum(lengths))
    new_sequence = kept.cumsum(0) - 1
    home, bounds = new_sequence[stream.home[tokens]], _bounds(lengths, device)
    active = stream.active
    if active is not None:
        active = (kept_tokens.cumsum(0) - 1)[active[kept_tokens[active]]]
    if stream.whole:  # much is known without looking
        units = kept.nonzero().squeeze(1)
        of_units = _sequences_as_units(home, bounds, stream.row[units], stream.live[units])
    else:
        kept_units = kept[stream.sequence]
        units = kept_units.nonzero().squeeze(1)
        owner = stream.owner[tokens]
        new_unit, new_token = kept_units.cumsum(0) - 1, kept_tokens.cumsum(0) - 1
        of_units = {
            "owner": torch.where(owner >= 0, new_unit[owner], owner),
            "sequence": new_sequence[stream.sequence[units]],
            "place": stream.place[units],
            "anchor": new_token[stream.anchor[units]],
            "row": stream.row[units],
            "live": stream.live[units],
        }
    part = Stream(
        hidden=stream.hidden.index_select(0, tokens),
        position=stream.position[tokens],
        lengths=tuple(lengths),
        bounds=bounds,
        home=home,
        skipped=stream.skipped[kept],
        active=active,
        asking=tuple(asking),
        whole=stream.whole,
        **of_units,
    )
    return Selection(part, tokens, units)


def halt(stream: Stream, live: Tensor, context_halts: bool = False) -> tuple[Stream, Tensor | None] | None:
    """Let units go: `live` [U] is False for those with an answer.

    A sequence without a live unit is dropped. In the others the tokens of answered units stop computing and go on as
    keys and values; context tokens stay active as long as their sequence runs or, with `context_halts`, until the first
    of its words has left. Reads one small table from the device.

    Returns:
        The stream that goes on and the rows of the units in it (None = all of them), or None when nobody is left.
    """
    if stream.whole:  # nobody can be half answered; as many words as sentences would not say so
        keep = live.tolist()
        if not any(keep):
            return None
        part = select(stream.having(live=live), keep)
        return part.stream, part.units
    waiting = _count(live, stream.sequence, stream.sequences)  # [S]
    awake = _awake(stream, live, _context(stream, live, context_halts))  # [T]
    live_units, awake_tokens = torch.stack([waiting, _count(awake, stream.home, stream.sequences)]).tolist()
    keep = [count > 0 for count in live_units]
    if not any(keep):
        return None
    everyone = all(a == n for a, n, wanted in zip(awake_tokens, stream.lengths, keep, strict=True) if wanted)
    halted = stream.having(
        live=live,
        active=None if everyone else _rows_where(awake, sum(awake_tokens)),
        asking=stream.lengths if everyone else tuple(awake_tokens),
    )
    if all(keep):
        return halted, None
    part = select(halted, keep)
    return part.stream, part.units


def resting(stream: Stream, live: Tensor, context_halts: bool = False) -> Stream:
    """The same stream with units stopped: `live` [U] is False for those that compute no more, as in `halt`.

    Nothing is dropped: training needs a row of every unit at every exit. So that something always computes, context
    goes on in sequences that `halt` would drop. Reads one small table from the device.
    """
    done = (_count(live, stream.sequence, stream.sequences) == 0)[stream.home]
    awake = _awake(stream, live, done | _context(stream, live, context_halts))  # [T]
    asking = tuple(_count(awake, stream.home, stream.sequences).tolist())
    return stream.having(live=live, active=_rows_where(awake, sum(asking)), asking=asking)


def _context(stream: Stream, live: Tensor, halts: bool) -> Tensor | bool:
    """Whether tokens of no unit compute: always or, where they halt, [T] until the first unit of theirs has left."""
    if not halts:
        return True
    waiting, everyone = (_count(mask, stream.sequence, stream.sequences) for mask in (live, torch.ones_like(live)))
    return (waiting == everyone)[stream.home]


def _awake(stream: Stream, live: Tensor, context: Tensor | bool) -> Tensor:
    """Whether each token computes [T]: as its unit is live, or of no unit, as `context` says."""
    of_unit = torch.cat([live, live.new_zeros(1)])  # −1 finds the last: sentences without words have no unit at all
    return torch.where(stream.owner >= 0, of_unit[stream.owner], context)


def _count(mask: Tensor, group: Tensor, groups: int) -> Tensor:
    """How many True there are in each group: [groups]."""
    return torch.zeros(groups, dtype=torch.long, device=mask.device).index_add(0, group, mask.long())


def _rows_where(mask: Tensor, count: int) -> Tensor:
    """Rows where the mask is True, when the host knows how many: no synchronisation."""
    return torch.nonzero_static(mask, size=count).squeeze(1)


def _bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], device=device)
