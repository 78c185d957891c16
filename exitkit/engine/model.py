"""A stock transformers model with exits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from exitkit.engine import layout
from exitkit.engine.encoders.base import Encoder
from exitkit.engine.heads import ExitHead, Pooling, pool
from exitkit.engine.loop import Pass, Passed, full_pass, run
from exitkit.engine.schedule import Schedule
from exitkit.engine.stream import Batch, Stream
from exitkit.engine.trace import Trace
from exitkit.errors import UsageError
from exitkit.policy import Shape
from exitkit.tasks import TASKS, Classification, Tagging


class Exits(nn.Module, ABC):
    """What has exits: one model, or a cascade of several. All that calibration, benchmarks and prediction know."""

    shape: Shape
    exits: tuple[int, ...]  # layer of each exit, from 1; in a cascade counted through all models
    probes: nn.ModuleDict  # by policy

    @property
    @abstractmethod
    def models(self) -> tuple[ExitModel, ...]:
        """The complete models, smallest first. The last one is the full model."""

    @abstractmethod
    def run(self, batch: Batch, schedule: Schedule) -> Trace:
        """Answer a padded batch under a policy, in evaluation mode; see `loop.run`."""

    @abstractmethod
    def full_pass(self, batch: Batch) -> Pass:
        """What every exit says of a padded batch."""

    @abstractmethod
    def head_costs(self) -> tuple[int, ...]:
        """Multiply-adds [E] of each exit's head, per unit."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.models[-1].stock.device
        return device


class ExitModel(Exits):
    """A stock classifier or tagger whose answer may be read before its last layer.

    The last exit is the stock model's own head and is not listed twice: `stock` alone is the full model, and saving
    it gives a checkpoint that plain transformers loads.

    Args:
        stock: the model with its classification head.
        encoder: the class that runs its family of layers.
        exits: layers (from 1) that exits sit on; the last layer is added if it is missing.
        pooling: what exits 1..E−1 read.
        scale: in regression, the standard deviation of the training labels.
    """

    def __init__(
        self,
        stock: PreTrainedModel,
        encoder: type[Encoder],
        exits: Sequence[int],
        pooling: Pooling,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.stock = stock
        self.encoder = encoder(stock)
        self.pooling = pooling
        self.task = "tagging" if self.encoder.tags_words else _kind(stock)
        layers = len(self.encoder.blocks)
        self.exits = tuple(sorted({*exits, layers}))
        if self.exits[0] < 1 or self.exits[-1] > layers:
            raise UsageError(f"exits {list(exits)} are not all layers of this model; it has layers 1 to {layers}.")
        labels = int(stock.config.num_labels)
        self.shape = Shape(
            exits=len(self.exits),
            layers=layers,
            labels=labels,
            width=self.encoder.width,
            task=self.task,
            scale=scale,
            words_halt=encoder.words_halt,
        )
        dropout = head_dropout(stock)
        self.heads = nn.ModuleList(ExitHead(self.encoder.width, labels, pooling, dropout) for _ in self.exits[:-1])
        self.probes = nn.ModuleDict()  # by policy
        self.scaffold = nn.ModuleDict()  # what only training needs; in no artifact

    @property
    def exit_heads(self) -> list[ExitHead]:
        """The heads of exits 1..E−1."""
        return list(self.heads)  # type: ignore[arg-type]  # a ModuleList forgets what it holds

    @property
    def models(self) -> tuple[ExitModel, ...]:
        """Itself."""
        return (self,)

    def run(self, batch: Batch, schedule: Schedule) -> Trace:  # noqa: D102
        return run(self, batch, schedule)

    def full_pass(self, batch: Batch) -> Pass:  # noqa: D102
        return full_pass(self, batch)

    def head_costs(self) -> tuple[int, ...]:  # noqa: D102
        return (*(head.cost() for head in self.exit_heads), self.encoder.stock_head_cost())

    def read(self, exit: int, stream: Stream, units: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Run the head of an exit (from 1) for the units in rows `units` [n] of a stream (None = all).

        Returns:
            Features [n, d] for probes and logits [n, C]. The last exit gives no features: nobody decides there.
        """
        finished = self.encoder.finished(stream)
        if exit == self.shape.exits:
            return None, self.encoder.stock_head(self.encoder.pooled(finished, units))
        features, logits = self.heads[exit - 1](pool(finished, self.pooling, self.task, units))
        return features, logits

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        words: Tensor | None = None,
        embedded: Callable[[Stream], Stream] | None = None,
        between: Callable[[int, Stream, Stream], Stream | Passed] | None = None,
        onward: Callable[[int, Stream, Tensor], Stream] | None = None,
    ) -> Pass:
        """Every exit on a padded batch; see `loop.full_pass`."""
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        if words is not None:
            batch["words"] = words
        return full_pass(self, batch, embedded, between, onward)

    def train(self, mode: bool = True) -> ExitModel:
        """Training mode, but for modules that have parameters and train none: frozen also means without dropout."""
        super().train(mode)
        if mode:
            layout.by_output(self)
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by role: `encoder`, `heads` (exits and the stock head), `probes`, `scaffold`."""
        stock_head = [p for module in self.encoder.stock_head_modules() for p in module.parameters()]
        of_heads = {id(p) for p in stock_head}
        return {
            "encoder": [p for p in self.stock.parameters() if id(p) not in of_heads],
            "heads": [*self.heads.parameters(), *stock_head],
            "probes": list(self.probes.parameters()),
            "scaffold": list(self.scaffold.parameters()),
        }


def stock_class(kind: str) -> Any:
    """The class of transformers whose head answers a kind of task."""
    return AutoModelForTokenClassification if kind == Tagging.kind else AutoModelForSequenceClassification


def _kind(stock: PreTrainedModel) -> str:
    """The kind of task that a sequence classifier was made for; config.json may leave it out."""
    problem = stock.config.problem_type
    known = (kind for kind, task in TASKS.items() if problem is not None and task.problem_type == problem)
    return next(known, Classification.kind)


def head_dropout(stock: PreTrainedModel) -> float:
    """The dropout that the stock head was made for; exit heads take the same."""
    config = stock.config
    names: Iterable[str] = (
        "classifier_dropout",
        "seq_classif_dropout",
        "classifier_dropout_prob",
        "hidden_dropout_prob",
        "dropout",
    )
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    return 0.0
