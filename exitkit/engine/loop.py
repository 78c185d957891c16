"""The loop: embed → for each layer: gate? → layer → exit head → decide → write answers → compact → trace.

`run` answers a batch under a policy; `every_exit` runs the same layers and heads for all exits and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from exitkit.engine import contract
from exitkit.engine.encoders.base import Encoder, linear_cost
from exitkit.engine.schedule import Schedule
from exitkit.engine.stream import Batch, Stream, halt, pack, put_back, select
from exitkit.engine.trace import Recorder, Trace
from exitkit.errors import UsageError
from exitkit.policy import Decision, Evidence, ExitPolicy, Passage, Shape, State, asks_probe, has_gates, reads_heads


class Runnable(Protocol):
    """What the loop needs of a model: layers, the exits that sit on them, and the modules that policies ask."""

    encoder: Encoder
    exits: tuple[int, ...]  # layer of each exit, from 1
    shape: Shape
    probes: nn.ModuleDict  # by policy

    def read(self, exit: int, stream: Stream, units: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Features and logits of an exit (from 1) for the units in rows `units` [n] of a stream; None = all."""


@torch.inference_mode()
def run(model: Runnable, batch: Batch, schedule: Schedule) -> Trace:
    """Carry one batch upwards until every unit has its answer.

    Args:
        model: in evaluation mode.
        batch: padded, on the model's device.
        schedule: the policy at each exit.

    Raises:
        PluginError: the policy fails or breaks its contract; the message names it.
    """
    walk = Walk(model, batch, schedule)
    tokens, stream = pack(batch)
    stream = stream.carrying(model.encoder.embed(tokens))
    state = contract.start(schedule.name, schedule.first, stream.units, stream.hidden.device)
    trace = Recorder(stream, model.shape)
    below = 0
    for exit, layer in enumerate(model.exits[: walk.last - 1], start=1):
        if not schedule.asked[exit - 1]:
            continue  # nobody may leave; who runs a layer before the next exit that is asked counts there
        stream, ran = walk.climb(below, layer, stream, state, trace)
        below = layer
        if not any(ran):
            continue  # no state has changed since an exit was asked
        seen, asked = walk.look(exit, layer, stream, ran, trace)
        decision, state = walk.decide(seen, asked, state)
        leaving = decision.leave.nonzero().squeeze(1)  # one read from the device per exit
        if leaving.shape[0] == 0:
            continue
        walk.release(exit, layer, stream, decision, leaving, trace)
        if trace.waiting == 0:
            return trace.finish()
        stream, state = compact(stream, decision.leave, state, walk.context_halts)
    stream, _ = walk.climb(below, model.exits[walk.last - 1], stream, state, trace)
    walk.conclude(stream, state, trace)
    return trace.finish()


class Pass(NamedTuple):
    """What all exits said of a batch, units in its own order."""

    logits: Tensor  # [E, U, C]
    features: tuple[Tensor, ...]  # [E−1] of [U, d], what the heads made of the states
    notes: tuple[Any, ...] = ()  # [L] what `between` noted of each layer
    live: Tensor | None = None  # [E, U] bool, units that `onward` had not stopped before the exit


@dataclass(frozen=True)
class Passed:
    """What becomes of a layer's states where `between` has more to say than what is read after it."""

    onward: Stream  # what the next layer reads
    at_exit: Stream | None = None  # what this layer's exit reads; None = the same
    note: Any = None  # for the losses, which find it in EveryExit.notes


def full_pass(
    model: Runnable,
    batch: Batch,
    embedded: Callable[[Stream], Stream] | None = None,
    between: Callable[[int, Stream, Stream], Stream | Passed] | None = None,
    onward: Callable[[int, Stream, Tensor], Stream] | None = None,
) -> Pass:
    """Run every layer and every head, with gradients where they are on.

    Args:
        model: in any mode.
        batch: padded.
        embedded: changes what the first layer reads.
        between: between(index, before, after) says what is read after layer `index` (from 0), by its exit and by the
            next layer; a `Passed` may say it of both, and hold a note for the losses.
        onward: onward(exit, stream, logits) says what the layer after an exit (from 1) reads, if not the same as the
            exit. It may stop units, but not drop them.
    """
    tokens, stream = pack(batch)
    stream = stream.carrying(model.encoder.embed(tokens))
    if embedded is not None:
        stream = embedded(stream)
    answers, features, notes, live, below = [], [], [], [], 0
    for exit, layer in enumerate(model.exits, start=1):
        at_exit = stream
        for index in range(below, layer):
            after = stream.carrying(model.encoder.layer(index, stream))
            passed = after if between is None else between(index, stream, after)
            if isinstance(passed, Passed):
                notes.append(passed.note)
                stream, at_exit = passed.onward, passed.at_exit or passed.onward
            else:
                notes.append(None)
                stream = at_exit = passed
        below = layer
        read, logits = model.read(exit, at_exit)
        answers.append(logits)
        live.append(stream.live)
        if read is not None:
            features.append(read)
        if onward is not None:
            stream = onward(exit, stream, logits)
    in_order = stream.row.argsort()
    return Pass(
        torch.stack(answers)[:, in_order],
        tuple(feature[in_order] for feature in features),
        tuple(notes),
        torch.stack(live)[:, in_order],
    )


def every_exit(model: Runnable, batch: Batch) -> Tensor:
    """Logits of all exits [E, U, C] for a padded batch, units in its own order; with gradients where they are on."""
    return full_pass(model, batch).logits


def keys(batch: Batch) -> Tensor:
    """A number [U] for every unit that depends on nothing but its sequence's tokens and its place in it."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    place = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    mixed = ((ids + 1) * place * 0x9E3779B1 ^ (ids << 17)) * mask
    of_sequence = mixed.sum(dim=1) & (2**31 - 1)
    words = batch.get("words")
    if words is None:
        return of_sequence
    first = (words >= 0) & (words != torch.nn.functional.pad(words, (1, 0), value=-2)[:, :-1])
    return ((of_sequence[:, None] + (words + 1) * 0x85EBCA77) & (2**31 - 1))[first]


def missing_probe(name: str, policy: ExitPolicy) -> str:
    """What to say when a model lacks the module that a policy asks."""
    return (
        f"policy '{name}' needs a probe that this model does not have; train it with --recipe {policy.trained_by} and "
        "without options that leave the probe out."
    )


def compact(stream: Stream, leave: Tensor, state: State, context_halts: bool = False) -> tuple[Stream, State]:
    """Let units go from the stream, and with dropped sequences their rows from the state. Somebody must stay."""
    rest = halt(stream, leave, context_halts)
    assert rest is not None
    stream, units = rest
    return stream, state if units is None else {key: rows[units] for key, rows in state.items()}


class Walk:
    """One schedule on one model: the steps of `run`, each of which says what it reads and returns what changed."""

    def __init__(self, model: Runnable, batch: Batch, schedule: Schedule) -> None:
        self.model = model
        self.schedule = schedule
        self.name = schedule.name
        self.has_gates = has_gates(type(schedule.first))
        self.reads = schedule.first.reads
        self.context_halts = schedule.first.context_halts
        self.reads_heads = reads_heads(schedule.first)
        self.limits = schedule.limits
        self.guarded = True  # until it has decided once
        self.last = self.limits.last(model.shape.exits)
        self.probe: nn.Module | None = dict(model.probes.items()).get(self.name)
        if self.probe is None and asks_probe(type(schedule.first)):
            raise UsageError(missing_probe(self.name, schedule.first))
        self.keys = keys(batch) if "key" in self.reads else None

    def climb(self, below: int, top: int, stream: Stream, state: State, trace: Recorder) -> tuple[Stream, list[bool]]:
        """Run layers below+1 to top. Returns also, per sequence, whether it ran any of them."""
        if not self.has_gates:
            for layer in range(below + 1, top + 1):
                trace.layer(layer, stream)
                stream = stream.carrying(self.model.encoder.layer(layer - 1, stream))
            return stream, [True] * stream.sequences
        ran = [False] * stream.sequences
        for layer in range(below + 1, top + 1):
            stream, now = self._gated_layer(layer, stream, state, trace)
            ran = [a or b for a, b in zip(ran, now, strict=True)]
        return stream, ran

    def _gated_layer(self, layer: int, stream: Stream, state: State, trace: Recorder) -> tuple[Stream, list[bool]]:
        before = Passage(
            layer=layer,
            layers=self.model.shape.layers,
            hidden=stream.hidden,
            bounds=stream.bounds,
            sequence=stream.sequence,
            probe=self.probe,
            lengths=stream.lengths,
        )
        runs = contract.gate(self.name, self.schedule.first, before, state)
        trace.probed(1, contract.gate_cost(self.name, self.schedule.first, before))
        who = [True] * stream.sequences if runs is None else runs.tolist()
        if runs is None or all(who):
            trace.layer(layer, stream)
            return stream.carrying(self.model.encoder.layer(layer - 1, stream)), who
        stream = stream.having(skipped=~runs + (0 if stream.skipped is None else stream.skipped))
        if not any(who):
            return stream, who
        part, _ = select(stream, who)
        trace.layer(layer, part)
        part = part.carrying(self.model.encoder.layer(layer - 1, part))
        put_back(stream, who, part)  # nobody reads what the layer read any more
        return stream, who

    def read(self, exit: int, stream: Stream, units: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Features and logits of an exit as the policy and the user see them; see `ExitModel.read`."""
        features, logits = self.model.read(exit, stream, units)
        return features, self.limits.temper(exit, logits)

    def look(
        self, exit: int, layer: int, stream: Stream, ran: list[bool], trace: Recorder
    ) -> tuple[Evidence, Tensor | None]:
        """What the policy may see, and the rows [n] of the units that it is asked about (None = all of them).

        Heads are run for those units only, and only if the policy reads any.
        """
        shape = self.model.shape
        last = exit == self.last
        all_ran = all(ran)
        if all_ran:
            fresh = stream.live if stream.active is None else torch.ones_like(stream.live)
        else:
            fresh = torch.tensor(ran, device=stream.live.device)[stream.sequence]
        asked = None
        if stream.active is not None or not (all_ran or last):
            asked = (stream.live if last else stream.live & fresh).nonzero().squeeze(1)
        probed = None
        if last or self.reads_heads:
            features, logits = self._ask(exit, stream, asked, trace, "answered" in self.reads and not last)
            if features is not None and "probe" in self.reads and self.probe is not None:
                probed = _spread(self.probe(features), asked, stream.units)
                trace.probed(features.shape[0], linear_cost(self.probe))
        else:
            logits = stream.hidden.new_full((1, 1), torch.nan).expand(stream.units, shape.labels)
        seen = Evidence(
            exit=exit,
            exits=shape.exits,
            layer=layer,
            layers=shape.layers,
            labels=shape.labels,
            task=shape.task,
            logits=logits,
            live=stream.live,
            fresh=fresh,
            sequence=stream.sequence,
            position=stream.place,
            probe=probed,
            scale=shape.scale,
            key=None if self.keys is None else self.keys[stream.row],
        )
        return seen, asked

    def _ask(
        self, exit: int, stream: Stream, asked: Tensor | None, trace: Recorder, rescores: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Run the head of an exit for the units in rows `asked` and write down what it says.

        Returns features [n, d] of those units and logits [U, C] of all: of units that are not asked their latest, or
        if the policy `rescores` them what this exit would say.
        """
        if asked is None:
            features, logits = self.read(exit, stream, None)
            trace.answer(exit, stream.row, logits)
            return features, logits
        if not rescores:
            features, logits = self.read(exit, stream, asked)
            trace.answer(exit, stream.row[asked], logits)
            return features, trace.answers(stream.row)
        features, logits = self.read(exit, stream, None)
        trace.answer(exit, stream.row[asked], logits[asked])
        trace.asked(exit, stream.units - asked.shape[0])
        return None if features is None else features[asked], logits

    def decide(self, seen: Evidence, asked: Tensor | None, state: State) -> tuple[Decision, State]:
        """Ask the policy. Only units that it is asked about can leave, and only their state changes."""
        step = self.schedule.steps[seen.exit - 1]
        decision, new = contract.decide(self.name, step, seen, state, self.limits, self.guarded)
        self.guarded = False
        if asked is None:
            return decision, new
        kept = {key: _kept(rows, new[key], asked) for key, rows in state.items()}
        return replace(decision, leave=decision.leave & seen.live & seen.fresh), kept

    def release(
        self, exit: int, layer: int, stream: Stream, decision: Decision, leaving: Tensor, trace: Recorder
    ) -> None:
        """Write the final answers of the units in rows `leaving` [n] of the stream."""
        rows = stream.row[leaving]
        if decision.answer is not None:
            trace.replace(rows, decision.answer[leaving])
        elif not self.reads_heads:
            trace.answer(exit, rows, self.read(exit, stream, leaving)[1])
        trace.leave(exit, stream.ran(layer, leaving), rows)

    def conclude(self, stream: Stream, state: State, trace: Recorder) -> None:
        """The last exit answers for whoever is left."""
        layer = self.model.exits[self.last - 1]
        seen, asked = self.look(self.last, layer, stream, [True] * stream.sequences, trace)
        rows = stream.row if asked is None else stream.row[asked]
        answer = contract.conclude(self.name, self.schedule.steps[self.last - 1], seen, state)
        if answer is not None:
            trace.replace(rows, answer if asked is None else answer[asked])
        trace.leave(self.last, stream.ran(layer, asked), rows)


def _kept(before: Tensor, after: Tensor, asked: Tensor) -> Tensor:
    """State with new rows for those asked. Zeros for the others where a row has become another size."""
    if before.shape != after.shape:
        before = before.new_zeros(after.shape)
    return before.index_copy(0, asked, after[asked])


def _spread(answers: Tensor, asked: Tensor | None, units: int) -> Tensor:
    """Rows for all units [U, p] of answers for some of them; NaN for the others."""
    if asked is None:
        return answers
    return answers.new_full((units, answers.shape[1]), torch.nan).index_copy(0, asked, answers)
