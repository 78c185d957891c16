"""A recorded pass over rows, and what any setting of a policy would have made of it.

Where decisions depend only on what exits say, the answers of all exits, recorded once, give the outcome of every
setting without running the model again. The decisions are made by the policy's own `decide`, exit by exit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exitkit import contract
from exitkit.errors import UsageError
from exitkit.loop import full_pass, keys, missing_probe
from exitkit.model import ExitModel
from exitkit.policy import Evidence, Shape
from exitkit.settings import Schedule
from exitkit.stream import Batch, units_of


@dataclass(frozen=True)
class Recording:
    """What every exit said about every unit, and where the units stand."""

    logits: Tensor  # [E, N, C] fp32
    lengths: Tensor  # [S] tokens of each sequence
    shape: Shape
    layers: tuple[int, ...]  # layer of each exit, from 1
    probes: Mapping[str, Tensor] = field(default_factory=dict)  # by policy: [E−1, N, p]
    keys: Tensor | None = None  # [N]
    sequence: Tensor | None = None  # [N] sequence of each unit, ascending; None where units are sequences
    place: Tensor | None = None  # [N] its place there
    tokens: Tensor | None = None  # [N] its tokens

    @property
    def units(self) -> int:
        """N."""
        return self.logits.shape[1]

    @property
    def sequences(self) -> int:
        """S."""
        return self.lengths.shape[0]


@dataclass(frozen=True)
class Outcome:
    """Answers and exits of one setting on a recording."""

    logits: Tensor  # [N, C]
    exit: Tensor  # [N] from 1

    def of_sequences(self, recording: Recording) -> Tensor:
        """The exit after which a sequence is done [S], from 1: the last of its units'."""
        if recording.sequence is None:
            return self.exit
        first = torch.ones(recording.sequences, dtype=self.exit.dtype)
        return first.scatter_reduce(0, recording.sequence, self.exit, "amax")


@torch.inference_mode()
def record(model: ExitModel, batches: Iterable[Batch], readers: Iterable[str] = ()) -> Recording:
    """Run all exits on all rows, and the probes of the policies in `readers` on the exits' features.

    `model` in evaluation mode, batches on its device.
    """
    logits, lengths, seen = [], [], []
    sequence: list[Tensor] = []
    place: list[Tensor] = []
    tokens: list[Tensor] = []
    sequences = 0
    probes: dict[str, list[Tensor]] = {name: [] for name in readers}
    for batch in batches:
        passed = full_pass(model, batch)
        logits.append(passed.logits.float().cpu())
        lengths.append(batch["attention_mask"].sum(dim=1).cpu())
        seen.append(keys(batch).cpu())
        if "words" in batch:
            units = units_of(batch)
            sequence.append(units.sequence.cpu() + sequences)
            place.append(units.place.cpu())
            tokens.append(units.tokens.cpu())
            sequences += len(lengths[-1])
        for name, found in probes.items():
            found.append(torch.stack([model.probes[name](one) for one in passed.features]).float().cpu())
    if not logits:
        raise UsageError("there are no rows to run.")
    return Recording(
        torch.cat(logits, dim=1),
        torch.cat(lengths),
        model.shape,
        model.exits,
        {name: torch.cat(found, dim=1) for name, found in probes.items()},
        torch.cat(seen),
        *(torch.cat(part) if part else None for part in (sequence, place, tokens)),
    )


@torch.inference_mode()
def replay(recording: Recording, schedule: Schedule) -> Outcome:
    """What a schedule would answer, and where.

    Equal to a live run, but for ties within rounding of a threshold, unless the policy changes later states: then it is
    a guess, which takes all states as the full model has them.
    """
    shape, units = recording.shape, recording.units
    state = contract.start(schedule.name, schedule.first, units, recording.logits.device)
    limits = schedule.limits
    said_of = recording.probes.get(schedule.name)
    if "probe" in schedule.first.reads and said_of is None:
        raise UsageError(missing_probe(schedule.name, schedule.first))
    last = limits.last(shape.exits)
    answers = limits.temper(last, recording.logits[last - 1]).clone()
    taken = torch.full((units,), last)
    live = torch.ones(units, dtype=torch.bool)
    everyone = torch.ones(units, dtype=torch.bool)
    sequence = torch.arange(units) if recording.sequence is None else recording.sequence
    place = torch.zeros_like(sequence) if recording.place is None else recording.place
    for exit in range(schedule.asks_from, last + 1):
        said_now = limits.temper(exit, recording.logits[exit - 1])
        if recording.sequence is not None and exit < last and "answered" not in schedule.first.reads:
            said_now = torch.where(live[:, None], said_now, answers)
        seen = Evidence(
            exit=exit,
            exits=shape.exits,
            layer=recording.layers[exit - 1],
            layers=shape.layers,
            labels=shape.labels,
            task=shape.task,
            logits=said_now,
            live=live,
            fresh=everyone,
            sequence=sequence,
            position=place,
            scale=shape.scale,
            probe=said_of[exit - 1] if said_of is not None and exit < shape.exits else None,
            key=recording.keys,
        )
        policy = schedule.steps[exit - 1]
        if exit == last:
            final = contract.conclude(schedule.name, policy, seen, state)
            if final is not None:
                answers[live] = final.float()[live]
            break
        decision, state = contract.decide(schedule.name, policy, seen, state, limits)
        leave = decision.leave & live
        said = seen.logits if decision.answer is None else decision.answer.float()
        answers[leave] = said[leave]
        taken[leave] = exit
        live = live & ~leave
    return Outcome(answers, taken)
