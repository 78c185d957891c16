"""How long a layer takes for so many sequences and tokens: measured once, then looked up.

Replaying a setting tells who is still there at each layer; this table turns that into seconds without running.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from exitkit.engine.cost import ReplayCost
from exitkit.engine.loop import compact
from exitkit.engine.model import ExitModel
from exitkit.engine.replay import Outcome, Recording
from exitkit.engine.schedule import Schedule
from exitkit.engine.stream import Batch, Stream, pack
from exitkit.measuring.clock import seconds_of
from exitkit.progress import bar

REPEATS = 7
SAMPLES = 6
Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Seconds = fixed + per_token · tokens at each measured number of sequences; interpolated in between."""

    sequences: Table  # [K] ascending, from 1
    fixed: Table  # [K]
    per_token: Table  # [K]

    def __call__(self, sequences: Table, tokens: Table) -> Table:
        """Seconds for arrays of counts; 0 where nobody is left."""
        fixed = np.interp(sequences, self.sequences, self.fixed)
        per_token = np.interp(sequences, self.sequences, self.per_token)
        return np.where(sequences > 0, np.maximum(fixed + per_token * tokens, 0.0), 0.0)


@dataclass(frozen=True)
class LayerTimes:
    """The measured parts of a batch's time."""

    embed: Line  # packing and embedding
    layer: Line
    exit: Line  # an exit head, and letting half of the sequences go
    last: Line  # the stock head


@torch.inference_mode()
def measure(model: ExitModel, batches: Sequence[Batch], batch_size: int, seed: int = 0) -> LayerTimes:
    """Time the parts of the loop on random choices of 1, 2, 4 … `batch_size` of the given rows.

    Args:
        model: in evaluation mode.
        batches: padded rows to choose from, on the model's device.
        batch_size: the largest number of sequences that will be asked for.
        seed: of the choices.
    """
    random = np.random.default_rng(seed)
    sizes = sorted({1 << k for k in range(batch_size.bit_length()) if 1 << k <= batch_size} | {batch_size})
    middle = model.shape.layers // 2
    points: dict[str, list[tuple[int, int, float]]] = {"embed": [], "layer": [], "exit": [], "last": []}
    jobs = [(size, sample) for sample in range(SAMPLES) for size in sizes]
    with bar("timing layers", len(jobs)) as advance:
        for size, _ in jobs:
            batch = choose(batches, random, size)
            stream = embedded(model, batch)
            parts: dict[str, Callable[[], object]] = {
                "embed": partial(embedded, model, batch),
                "layer": partial(model.encoder.layer, middle, stream),
                "exit": partial(_exit_step, model, stream),
                "last": partial(model.read, model.shape.exits, stream),
            }
            for name, part in parts.items():
                part()
                spent = [seconds_of(part, model.device) for _ in range(REPEATS)]
                points[name].append((size, stream.tokens, float(np.median(spent))))
            advance()
    return LayerTimes(**{name: _line(sizes, found) for name, found in points.items()})


def choose(batches: Sequence[Batch], random: np.random.Generator, size: int) -> Batch:
    """`size` random rows of some batches as one batch."""
    rows = []
    for _ in range(size):
        batch = batches[int(random.integers(len(batches)))]
        number = int(random.integers(batch["input_ids"].shape[0]))
        rows.append({name: tensor[number] for name, tensor in batch.items()})
    longest = max(row["input_ids"].shape[0] for row in rows)
    return {
        name: torch.stack([torch.nn.functional.pad(row[name], (0, longest - row[name].shape[0])) for row in rows])
        for name in rows[0]
    }


def embedded(model: ExitModel, batch: Batch) -> Stream:
    """A batch as the stream that the first layer reads."""
    tokens, stream = pack(batch)
    return stream.carrying(model.encoder.embed(tokens))


def _exit_step(model: ExitModel, stream: Stream) -> None:
    if model.shape.exits > 1:
        model.read(1, stream)
    if stream.units > 1:  # somebody must stay, and sentences may be without words
        leave = torch.arange(stream.units, device=stream.live.device) % 2 == 0
        compact(stream, leave, {})


def _line(sizes: Sequence[int], points: Sequence[tuple[int, int, float]]) -> Line:
    fixed, slope = [], []
    for size in sizes:
        tokens = np.array([t for s, t, _ in points if s == size], dtype=np.float64)
        spent = np.array([sec for s, _, sec in points if s == size])
        per_token = 0.0
        if np.ptp(tokens) > 0:
            per_token = max(0.0, float(np.polyfit(tokens, spent, 1)[0]))
        fixed.append(float(np.mean(spent - per_token * tokens)))
        slope.append(per_token)
    return Line(np.asarray(sizes, dtype=np.float64), np.asarray(fixed), np.asarray(slope))


class PredictedTime:
    """Seconds that replayed outcomes would take in batches of consecutive rows."""

    def __init__(self, recording: Recording, times: Sequence[LayerTimes], batch_size: int) -> None:
        self.times = times  # of each complete model
        self.recording = recording
        self.layers = recording.layers
        self.starts = recording.shape.starts
        self.lengths = recording.lengths.numpy().astype(np.float64)
        self.batches = np.arange(0, recording.sequences, batch_size)
        self.full = self._full()

    def _full(self) -> float:
        """Of the full model."""
        last = self.times[-1]
        there = self._counts(np.ones(self.recording.sequences, dtype=bool), len(self.times) - 1)
        layers = self.recording.shape.layers - self.starts[-1]
        return float((last.embed(*there) + layers * last.layer(*there) + last.last(*there)).sum())

    def seconds(self, outcome: Outcome, plan: Schedule) -> float:
        """Of one setting."""
        taken, ran = outcome.of_sequences(self.recording).numpy(), self.recording.ran(plan)
        total, below, model = 0.0, 0, -1
        for exit, layer in enumerate(self.layers, start=1):
            new = below in self.starts  # a complete model starts, from the text
            model += new
            times = self.times[model]
            there = self._counts(ran[taken - 1, layer - 1], model)
            if new:
                total += float(times.embed(*there).sum())
            total += (layer - below) * float(times.layer(*there).sum())
            below = layer
            if layer == self.layers[-1] or layer in self.starts:
                total += float(times.last(*there).sum())
            elif plan.read[exit - 1] or (taken == exit).any():
                total += float(times.exit(*there).sum())
        return total

    def speedup(self, outcome: Outcome, plan: Schedule) -> float:
        """Seconds of the full model ÷ seconds of the outcome."""
        return self.full / self.seconds(outcome, plan)

    def speedup_of_words(self, outcome: Outcome, cost: ReplayCost) -> float:
        """`speedup` where words leave one by one, with the work that `cost` counts.

        A layer takes as long as for as many sequences and so many tokens as its work is worth: halted words are keys
        only. So a layer of one sentence costs nearly all of its time however few of its words compute.
        """
        (times,) = self.times
        everyone = self._counts(np.ones(self.recording.sequences, dtype=bool), 0)
        total = float(times.embed(*everyone).sum())
        exits = dict(zip(self.layers, range(1, len(self.layers) + 1), strict=True))
        for layer, (price, (keys, queries)) in enumerate(
            zip(cost.price.layers, cost.computing(outcome), strict=True), start=1
        ):
            worth = (price.key * keys + price.query * queries) / (price.key + price.query)
            sequences, tokens, asked = (
                np.add.reduceat(counts.astype(np.float64), self.batches) for counts in (keys > 0, worth, queries)
            )
            total += float(times.layer(sequences, tokens).sum())
            if layer == self.layers[-1]:
                total += float(times.last(sequences, asked).sum())
            elif layer in exits and cost.plan.read[exits[layer] - 1]:
                total += float(times.exit(sequences, asked).sum())
        return self.full / total

    def _counts(self, there: npt.NDArray[np.bool_], model: int) -> tuple[Table, Table]:
        """Sequences and tokens of every batch that are still there, as a model reads them: [batches] each."""
        return (
            np.add.reduceat(there.astype(np.float64), self.batches),
            np.add.reduceat(there * self.lengths[model], self.batches),
        )
