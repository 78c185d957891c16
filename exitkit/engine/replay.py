"""A recorded pass over rows, and what any setting of a policy would have made of it.

Where decisions depend only on what exits say, the answers of all exits, recorded once, give the outcome of every
setting without running the model again. The decisions are made by the policy's own `decide`, exit by exit.

A cascade runs in the same way, only that its answers are not recorded: `play` asks a model for them when it needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from exitkit.engine import contract
from exitkit.engine.loop import keys, missing_probe
from exitkit.engine.model import Exits
from exitkit.engine.schedule import Schedule
from exitkit.engine.stream import Batch, own, units_of
from exitkit.errors import UsageError
from exitkit.policy import Evidence, Shape, reads_heads


@dataclass(frozen=True)
class Recording:
    """What every exit said about every unit, and where the units stand."""

    logits: Tensor  # [E, N, C] fp32
    lengths: Tensor  # [M, S] tokens of each sequence, as each of the M models reads it; M is 1 but in a cascade
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
        return self.lengths.shape[1]

    def ran(self, plan: Schedule) -> npt.NDArray[np.bool_]:
        """[E, L] whether a unit that leaves at an exit has run a layer: all of them up to the exit, but in a cascade.

        There a complete model is only run for its answer: where the unit leaves, and before where the policy reads it.
        """
        starts, tops = np.asarray(self.shape.starts), np.asarray(self.layers)
        below = starts[np.searchsorted(starts, tops) - 1]
        layer = np.arange(1, self.shape.layers + 1)
        own = (below[:, None] < layer) & (layer <= tops[:, None])
        return own | np.logical_or.accumulate(own & np.array([*plan.read, True])[:, None], axis=0)


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
def record(model: Exits, batches: Iterable[Batch], readers: Iterable[str] = ()) -> Recording:
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
        passed = model.full_pass(batch)
        logits.append(passed.logits.float().cpu())
        read = [own(batch, number)["attention_mask"].sum(dim=1) for number in range(len(model.models))]
        lengths.append(torch.stack(read).cpu())
        seen.append(keys(batch).cpu())
        if "words" in batch:
            units = units_of(batch)
            sequence.append(units.sequence.cpu() + sequences)
            place.append(units.place.cpu())
            tokens.append(units.tokens.cpu())
            sequences += lengths[-1].shape[1]
        for name, found in probes.items():
            found.append(torch.stack([model.probes[name](one) for one in passed.features]).float().cpu())
    if not logits:
        raise UsageError("there are no rows to run.")
    return Recording(
        torch.cat(logits, dim=1),
        torch.cat(lengths, dim=1),
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
    probed = recording.probes.get(schedule.name)
    if "probe" in schedule.first.reads and probed is None:
        raise UsageError(missing_probe(schedule.name, schedule.first))
    sequence = torch.arange(recording.units) if recording.sequence is None else recording.sequence
    place = torch.zeros_like(sequence) if recording.place is None else recording.place
    about = About(recording.shape, recording.layers, sequence, place, recording.keys, probed)
    return play(schedule, about, lambda exit, who: recording.logits[exit - 1])


@dataclass(frozen=True)
class About:
    """What a policy may see besides answers."""

    shape: Shape
    layers: tuple[int, ...]  # layer of each exit, from 1
    sequence: Tensor  # [N] sequence of each unit, ascending
    place: Tensor  # [N] its place there
    keys: Tensor | None = None  # [N]
    probed: Tensor | None = None  # [E−1, N, p]


Says = Callable[[int, Tensor], Tensor]
"""says(exit, who): logits [N, C] of an exit (from 1) for the units `who` [N] bool; rows of others mean nothing."""


def play(schedule: Schedule, about: About, says: Says) -> Outcome:
    """Let a policy decide exit by exit. Answers are asked for where the policy looks at them or somebody leaves."""
    shape, limits = about.shape, schedule.limits
    units, device = len(about.sequence), about.sequence.device
    reads, last = reads_heads(schedule.first), limits.last(shape.exits)
    state = contract.start(schedule.name, schedule.first, units, device)
    answers = torch.zeros(units, shape.labels, dtype=torch.float32, device=device)
    taken = torch.full((units,), last, device=device)
    live = everyone = torch.ones(units, dtype=torch.bool, device=device)

    def said(exit: int, who: Tensor) -> Tensor:
        return limits.temper(exit, says(exit, who)).float()

    for exit in range(1, last + 1):
        if exit < last and not schedule.asked[exit - 1]:
            continue
        logits = said(exit, live) if reads or exit == last else torch.full_like(answers, torch.nan)
        if exit < last and "answered" not in schedule.first.reads:
            logits = torch.where(live[:, None], logits, answers)
        seen = Evidence(
            exit=exit,
            exits=shape.exits,
            layer=about.layers[exit - 1],
            layers=shape.layers,
            labels=shape.labels,
            task=shape.task,
            logits=logits,
            live=live,
            fresh=everyone,
            sequence=about.sequence,
            position=about.place,
            scale=shape.scale,
            probe=about.probed[exit - 1] if about.probed is not None and exit < shape.exits else None,
            key=about.keys,
        )
        policy = schedule.steps[exit - 1]
        if exit == last:
            leave, answer = live, contract.conclude(schedule.name, policy, seen, state)
        else:
            decision, state = contract.decide(schedule.name, policy, seen, state, limits)
            leave, answer = decision.leave & live, decision.answer
            if answer is None and not reads:
                logits = said(exit, leave)
        answers = torch.where(leave[:, None], logits if answer is None else answer.float(), answers)
        taken = torch.where(leave, exit, taken)
        live = live & ~leave
    return Outcome(answers, taken)
