"""The packed stream: the real tokens of all sequences still running, end to end, without padding.

Dropping a sequence, halting a word and skipping a layer are one operation here: choosing rows. This file is the only
one that drops any. Sequences are packed in order of their length, because attention runs equal lengths in one call;
`row` remembers where each unit's answer belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from operator import itemgetter
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
    """The tokens and units of the sequences still running. The loop makes a new one at every step.

    What belongs to each token by its sequence alone is worked out when somebody asks for it.
    """

    hidden: Tensor  # [T, d]
    lengths: tuple[int, ...]  # [S] tokens of each sequence, on the host
    bounds: Tensor  # [S + 1] sequence s owns rows bounds[s]:bounds[s + 1]
    owner: Tensor | None  # [T] word that a token belongs to; −1 for context only ([CLS]). None: units are sequences
    sequence: Tensor  # [U] sequence of each unit, ascending
    place: Tensor  # [U] place of the unit in its sequence
    anchor: Tensor  # [U] the token that speaks for the unit: the first of a sequence or of a word
    row: Tensor  # [U] the unit's row in the trace
    live: Tensor  # [U] bool, no answer yet
    skipped: Tensor | None  # [S] layers that the sequence did not run; None = every sequence ran all
    active: Tensor | None  # [Q] ascending rows of the tokens that compute; None = all of them
    asking: tuple[int, ...]  # [S] active tokens of each sequence, on the host

    @cached_property
    def home(self) -> Tensor:
        """[T] sequence of each token."""
        return torch.repeat_interleave(self.bounds.diff(), output_size=self.tokens)

    @cached_property
    def position(self) -> Tensor:
        """[T] place of each token in its own sequence, from 0; a sequence keeps all its tokens as long as it runs."""
        return torch.arange(self.tokens, device=self.hidden.device) - self.bounds[self.home]

    @property
    def whole(self) -> bool:
        """Whether units are sequences, not words."""
        return self.owner is None

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

    def ran(self, layer: int, units: Tensor | None) -> Tensor | int:
        """How many of the first `layer` layers the units in rows `units` [n] (None = all) ran: [n], or one for all."""
        if self.skipped is None:
            return layer
        return layer - self.skipped[self.sequence if units is None else self.sequence[units]]

    def carrying(self, hidden: Tensor) -> Stream:
        """The same tokens with new states [T, d]."""
        return self.having(hidden=hidden)

    def having(self, **fields: Any) -> Stream:
        """The same sequences with some fields changed; at every layer, so without the cost of dataclasses.replace."""
        assert fields.keys() <= CHANGEABLE, f"not to be changed in a stream: {sorted(fields.keys() - CHANGEABLE)}"
        new = object.__new__(Stream)
        new.__dict__.update(self.__dict__, **fields)
        return new


CHANGEABLE = (Stream.__annotations__.keys() | {"home", "position"}) - {"lengths", "bounds"}
"""What may differ between two streams of the same sequences."""


def pack(batch: Batch) -> tuple[Tokens, Stream]:
    """Take the padding out of a batch.

    Returns the tokens to embed and a stream whose `hidden` still is empty ([T, 0]): `stream.carrying(embedded)`
    completes it. Without `words` in the batch every sequence is one unit.

    Raises ValueError: a row without a token, whose unit would have the first token of another row speak for it.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    device = ids.device
    in_order = mask.sum(dim=1).tolist()
    order = packing_order(in_order)
    lengths = tuple(in_order[i] for i in order)
    if lengths[0] < 1:
        raise ValueError(f"row {order[0]} of the batch has no token; give it one (exitkit.data.batches.with_tokens)")
    rows = torch.tensor(order, device=device)
    if lengths[0] == ids.shape[1]:  # nothing is padded, and `order` is the batch's own

        def flat(column: Tensor) -> Tensor:
            return column.flatten()
    else:
        real = mask[rows].bool()

        def flat(column: Tensor) -> Tensor:
            return column[rows][real]

    bounds = _bounds(lengths, device)
    words = batch.get("words")
    units: dict[str, Any]
    if words is None:
        sequence, place = torch.arange(len(rows), device=device), torch.zeros_like(rows)
        units = {"owner": None, "sequence": sequence, "place": place, "anchor": bounds[:-1], "row": rows}
    else:
        units = _words_as_units(flat(words), bounds, rows)
    packed = flat(ids)
    stream = Stream(
        hidden=torch.empty(len(packed), 0, dtype=torch.float32, device=device),
        lengths=lengths,
        bounds=bounds,
        live=torch.ones_like(units["row"], dtype=torch.bool),
        skipped=None,
        active=None,
        asking=lengths,
        **units,
    )
    types = batch.get("token_type_ids")
    return Tokens(ids=packed, types=None if types is None else flat(types), position=stream.position), stream


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


def _words_as_units(words: Tensor, bounds: Tensor, rows: Tensor) -> dict[str, Any]:
    """Number the words of all sequences; the trace counts them sentence by sentence in the batch's own order."""
    home = torch.repeat_interleave(bounds.diff(), output_size=len(words))
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
    }


def select(stream: Stream, keep: Sequence[bool]) -> tuple[Stream, Tensor]:
    """The part of the stream that the sequences with `keep` True make up (`keep` is on the host, one per sequence).

    Returns also the rows of its units in the whole stream: [U'].
    """
    device = stream.hidden.device
    sequences = torch.tensor([s for s, wanted in enumerate(keep) if wanted], device=device)
    lengths = tuple(n for n, wanted in zip(stream.lengths, keep, strict=True) if wanted)
    bounds = _bounds(lengths, device)
    of_units: dict[str, Any]
    if stream.owner is None:
        units, left = sequences, slice(len(sequences))  # where all rows are alike or count from 0, the first will do
        of_units = {
            "owner": None,
            "sequence": stream.sequence[left],
            "place": stream.place[left],
            "anchor": bounds[:-1],
            "row": stream.row.index_select(0, units),
            "live": stream.live[left],  # a sequence with an answer is gone
            "active": None,
            "asking": lengths,
        }
    else:
        units, of_units = _words_left(stream, stream.owner, keep)
    part = Stream(
        hidden=_kept_rows(stream.hidden, stream.lengths, keep),
        lengths=lengths,
        bounds=bounds,
        skipped=None if stream.skipped is None else stream.skipped.index_select(0, sequences),
        **of_units,
    )
    return part, units


def _words_left(stream: Stream, owner: Tensor, keep: Sequence[bool]) -> tuple[Tensor, dict[str, Any]]:
    kept = torch.tensor(keep, device=owner.device)  # [S]
    kept_units, kept_tokens = kept[stream.sequence], kept[stream.home]
    units = kept_units.nonzero().squeeze(1)
    new_unit, new_token = kept_units.cumsum(0) - 1, kept_tokens.cumsum(0) - 1
    owner, active = _kept_rows(owner, stream.lengths, keep), stream.active
    return units, {
        "owner": torch.where(owner >= 0, new_unit[owner], owner),
        "sequence": (kept.cumsum(0) - 1)[stream.sequence[units]],
        "place": stream.place[units],
        "anchor": new_token[stream.anchor[units]],
        "row": stream.row[units],
        "live": stream.live[units],
        "active": None if active is None else new_token[active[kept_tokens[active]]],
        "asking": tuple(n for n, wanted in zip(stream.asking, keep, strict=True) if wanted),
    }


def put_back(stream: Stream, keep: Sequence[bool], part: Stream) -> None:
    """Write the states of `part`, what `select(stream, keep)` gave, over those that the stream has. In place."""
    start = 0
    for source, count in _runs(stream.lengths, keep):
        stream.hidden[source : source + count] = part.hidden[start : start + count]
        start += count


def _kept_rows(of_tokens: Tensor, lengths: Sequence[int], keep: Sequence[bool]) -> Tensor:
    """The rows of a tensor [T, …] that belong to the sequences with `keep` True."""
    return torch.cat([of_tokens[start : start + count] for start, count in _runs(lengths, keep)])


def _runs(lengths: Sequence[int], keep: Sequence[bool]) -> list[tuple[int, int]]:
    """First row and number of rows of every run of sequences with `keep` True."""
    runs, start = [], 0
    for wanted, run in groupby(zip(keep, lengths, strict=True), key=itemgetter(0)):
        count = sum(length for _, length in run)
        if wanted:
            runs.append((start, count))
        start += count
    return runs


def halt(stream: Stream, leave: Tensor, context_halts: bool = False) -> tuple[Stream, Tensor | None] | None:
    """Let units go: `leave` [U] is True for those that have got their answer now.

    A sequence without a live unit is dropped. In the others the tokens of answered units stop computing and go on as
    keys and values; context tokens stay active as long as their sequence runs or, with `context_halts`, until the first
    of its words has left. Reads one small table from the device.

    Returns:
        The stream that goes on and the rows of the units in it (None = all of them), or None when nobody is left.
    """
    if stream.whole:  # nobody can be half answered; as many words as sentences would not say so
        keep = [not gone for gone in leave.tolist()]
        return select(stream, keep) if any(keep) else None
    live = stream.live & ~leave
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
    return select(halted, keep)


def resting(stream: Stream, live: Tensor, context_halts: bool = False) -> Stream:
    """The same stream with units stopped: `live` [U] is False for those that compute no more.

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
    assert stream.owner is not None
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
