"""What happened to a batch: answers, exits taken, work done. The only thing metrics, cost and reports may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit.engine.stream import Stream
from exitkit.policy import Shape


@dataclass(frozen=True)
class Work:
    """How much was computed, counted on the host. Works add up."""

    tokens: int  # tokens that came in, as the full model reads them
    pairs: int  # Σ length² of the sequences that came in, likewise
    queries: tuple[int, ...]  # [L] tokens that computed
    keys: tuple[int, ...]  # [L] tokens that served as keys and values
    scores: tuple[int, ...]  # [L] (query, key) pairs
    heads: tuple[int, ...]  # [E] units whose head was run
    probes: int = 0  # multiply-adds of the policy's own modules

    def __add__(self, other: Work) -> Work:
        def both(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Work(
            tokens=self.tokens + other.tokens,
            pairs=self.pairs + other.pairs,
            queries=both(self.queries, other.queries),
            keys=both(self.keys, other.keys),
            scores=both(self.scores, other.scores),
            heads=both(self.heads, other.heads),
            probes=self.probes + other.probes,
        )


@dataclass(frozen=True)
class Trace:
    """One row per unit, in the order of the input (in tagging: word by word, sentence after sentence)."""

    logits: Tensor  # [N, C] final answers, fp32
    exit: Tensor  # [N] exit that the answer was given at, from 1
    layers: Tensor  # [N] layers executed
    work: Work

    @staticmethod
    def join(traces: Sequence[Trace]) -> Trace:
        """The trace of several batches one after the other, on the CPU."""
        work = traces[0].work
        for trace in traces[1:]:
            work = work + trace.work
        return Trace(
            logits=torch.cat([trace.logits.cpu() for trace in traces]),
            exit=torch.cat([trace.exit.cpu() for trace in traces]),
            layers=torch.cat([trace.layers.cpu() for trace in traces]),
            work=work,
        )

    def histogram(self, exits: int) -> list[int]:
        """Units that left at each exit: [E]."""
        return torch.bincount(self.exit, minlength=exits + 1)[1:].tolist()


class Recorder:
    """Writes the trace of one batch while the loop runs."""

    def __init__(self, stream: Stream, shape: Shape) -> None:
        device, units = stream.hidden.device, stream.units
        self.waiting = units
        self._logits = torch.zeros(units, shape.labels, dtype=torch.float32, device=device)
        self._exit = torch.zeros(units, dtype=torch.long, device=device)
        self._layers = torch.zeros(units, dtype=torch.long, device=device)
        self._tokens = stream.tokens
        self._pairs = sum(n * n for n in stream.lengths)
        self._queries = [0] * shape.layers
        self._keys = [0] * shape.layers
        self._scores = [0] * shape.layers
        self._heads = [0] * shape.exits
        self._probes = 0

    def layer(self, layer: int, stream: Stream) -> None:
        """`stream` ran a layer (from 1)."""
        self._queries[layer - 1] += sum(stream.asking)
        self._keys[layer - 1] += stream.tokens
        self._scores[layer - 1] += sum(q * k for q, k in zip(stream.asking, stream.lengths, strict=True))

    def answer(self, exit: int, rows: Tensor, logits: Tensor) -> None:
        """The head of an exit (from 1) gave these logits [n, C] for the units of trace rows [n]."""
        self._heads[exit - 1] += logits.shape[0]
        self._logits.index_copy_(0, rows, logits.float())

    def asked(self, exit: int, units: int) -> None:
        """The head of an exit was run for so many more units, whose answers stay as they are."""
        self._heads[exit - 1] += units

    def probed(self, times: int, cost: int) -> None:
        """A policy's own module ran so many times, at so many multiply-adds each."""
        self._probes += times * cost

    def answers(self, rows: Tensor) -> Tensor:
        """The latest logits of the units of these trace rows; zeros before the first answer."""
        return self._logits[rows]

    def replace(self, rows: Tensor, answer: Tensor) -> None:
        """A policy's own answer [n, C] takes the place of the exit's."""
        self._logits.index_copy_(0, rows, answer.float())

    def leave(self, exit: int, layers: Tensor | int, rows: Tensor) -> None:
        """The units of these trace rows [n] have their final answer, after so many layers: [n], or one for all."""
        self.waiting -= rows.shape[0]
        self._exit.index_fill_(0, rows, exit)
        if isinstance(layers, int):
            self._layers.index_fill_(0, rows, layers)
        else:
            self._layers.index_copy_(0, rows, layers)

    def finish(self) -> Trace:
        """The trace, once nobody is waiting."""
        work = Work(
            tokens=self._tokens,
            pairs=self._pairs,
            queries=tuple(self._queries),
            keys=tuple(self._keys),
            scores=tuple(self._scores),
            heads=tuple(self._heads),
            probes=self._probes,
        )
        return Trace(self._logits, self._exit, self._layers, work)
