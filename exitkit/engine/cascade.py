"""A cascade as something with exits: its exits are its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from exitkit.engine.loop import Pass, keys
from exitkit.engine.model import ExitModel, Exits
from exitkit.engine.replay import About, play
from exitkit.engine.schedule import Schedule
from exitkit.engine.stream import Batch, own
from exitkit.engine.trace import Trace, Work


class Cascade(Exits):
    """Complete models, smallest first; each starts from the text and answers at its own last exit.

    CascadeBERT (2012.14682, section 3.1): model k's answer is given, or the text goes on to model k + 1. Where it
    differs from the released code: that runs every model on every row and selects afterwards, so that it saves on paper
    only, and builds all models in the size of the largest; here a model runs for the rows that are left, and each keeps
    its own size and tokenizer. Any policy that reads nothing but answers decides.

    A model runs only for its answer: under a policy that reads none (`fixed`, `hash`) it runs for those who leave at
    it. So `fixed` with the last exit is the largest model alone, the full model. Under all others a row that goes on
    has paid for the smaller models too, in every currency, and costs more than the full model where nobody but the last
    one answers it.

    Args:
        models: of the same task and labels.
        whole: `fixed` with the last exit for each of them.
    """

    def __init__(self, models: Sequence[ExitModel], whole: Sequence[Schedule]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        self.whole = tuple(whole)
        self.exits = tuple(accumulate(model.shape.layers for model in models))
        self.shape = replace(models[-1].shape, exits=len(models), layers=self.exits[-1], starts=(0, *self.exits[:-1]))
        self.probes = nn.ModuleDict()  # there are none

    @property
    def models(self) -> tuple[ExitModel, ...]:  # noqa: D102
        return tuple(self.members)  # type: ignore[arg-type]  # a ModuleList forgets what it holds

    def head_costs(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(model.encoder.stock_head_cost() for model in self.models)

    @torch.inference_mode()
    def run(self, batch: Batch, schedule: Schedule) -> Trace:
        """Ask the models one after the other, each about the rows that are left."""
        asked = Asked(self, batch)
        sequence = torch.arange(asked.rows, device=self.device)
        key = keys(own(batch, len(self.members) - 1)) if "key" in schedule.first.reads else None
        about = About(self.shape, self.exits, sequence, torch.zeros_like(sequence), key)
        outcome = play(schedule, about, asked.says)
        return Trace(outcome.logits, outcome.exit, asked.layers, asked.work())

    @torch.inference_mode()
    def full_pass(self, batch: Batch) -> Pass:
        """Ask every model about every row."""
        asked = Asked(self, batch)
        everyone = torch.ones(asked.rows, dtype=torch.bool, device=self.device)
        return Pass(torch.stack([asked.says(exit, everyone) for exit in range(1, self.shape.exits + 1)]), ())


class Asked:
    """What the models of a cascade have said of a batch, and what that took."""

    def __init__(self, cascade: Cascade, batch: Batch) -> None:
        self.cascade, self.batch = cascade, batch
        self.rows = batch["attention_mask"].shape[0]
        self.layers = torch.zeros(self.rows, dtype=torch.long, device=cascade.device)  # [N] executed
        self._works: dict[int, Work] = {}  # by exit

    def says(self, exit: int, who: Tensor) -> Tensor:
        """Logits [N, C] of a model (from 1) for the rows `who` [N] bool, zeros for others; see `replay.Says`.

        Reads from the device how many rows these are.
        """
        model, rows = self.cascade.models[exit - 1], who.nonzero().squeeze(1)
        logits = torch.zeros(self.rows, model.shape.labels, dtype=torch.float32, device=who.device)
        if rows.shape[0] == 0:
            return logits
        part = {name: values[rows] for name, values in own(self.batch, exit - 1).items()}
        trace = model.run(part, self.cascade.whole[exit - 1])
        self.layers[rows] += trace.layers
        self._works[exit] = trace.work
        return logits.index_copy(0, rows, trace.logits)

    def work(self) -> Work:
        """Of all models, their layers end to end. Rows count as the full model reads them, whether it ran or not."""
        lengths = own(self.batch, len(self.cascade.members) - 1)["attention_mask"].sum(dim=1).tolist()
        works = [self._works.get(exit) for exit in range(1, self.cascade.shape.exits + 1)]
        parts = list(zip(self.cascade.models, works, strict=True))

        def joined(name: str) -> tuple[int, ...]:
            each = [(0,) * model.shape.layers if work is None else getattr(work, name) for model, work in parts]
            return tuple(count for counts in each for count in counts)

        return Work(
            tokens=sum(lengths),
            pairs=sum(length * length for length in lengths),
            queries=joined("queries"),
            keys=joined("keys"),
            scores=joined("scores"),
            heads=tuple(0 if work is None else work.heads[-1] for work in works),
        )
