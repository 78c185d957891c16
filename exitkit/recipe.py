"""The contract of a recipe: how a model with exits is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from exitkit.containment import Complaint, contain
from exitkit.engine.loop import Passed as Passed
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Stream
from exitkit.tasks import Task

Over = Literal["units", "tokens", "pairs", "batch"]
"""What a loss is a mean over."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with the same trainable parts.

    Parameters that no group holds are frozen: no gradient, no weight decay, and their modules stay in evaluation mode.
    """

    name: str
    epochs: float
    groups: Sequence[Group]
    fine_tunes: bool = False
    """Whether it only trains the full model's answer: left out when training starts from a fine-tuned classifier."""
    label_free: bool = False
    """Whether its losses need no labels: rows of `--unlabelled` join the training rows, and `labels` is None."""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate, named by identity."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float


@dataclass(frozen=True)
class Lesson:
    """What the teacher said of a batch, beside what the student has at the same places: no padding, same order.

    In tagging answers are compared word by word, so that tokenizers may differ. A word that truncation cut off in the
    teacher is one that it says nothing of.
    """

    logits: Tensor | None  # [U, C] of the teacher
    answered: Tensor | None = None  # [U] bool, of whom it said anything; None = of all. The others' logits are 0
    hidden: tuple[tuple[Tensor, Tensor], ...] = ()  # (student's [T, d], teacher's [T, d']) for every pair of layers
    scores: tuple[tuple[Tensor, Tensor], ...] = ()  # (student's [P, H], teacher's [P, H']), P pairs of tokens
    vectors: tuple[tuple[Tensor, Tensor], ...] = ()  # (student's [T, 3, d], teacher's [T, 3, d'])
    lengths: tuple[int, ...] = ()  # [S] tokens of each sequence, in the order of T
    pooled: tuple[tuple[Tensor, Tensor], ...] = ()  # (student's [U', d], teacher's [U', d']) of units that both see


@dataclass(frozen=True)
class EveryExit:
    """What a loss may look at: the answers of all exits to one batch."""

    logits: Tensor  # [E, U, C]
    labels: Tensor | None  # [U]; [U, C] in multi-label; None in a phase without labels
    layers: Sequence[int]  # layer of each exit, from 1
    task: Task
    weights: Tensor | None = None  # [C] weights of the classes
    features: Sequence[Tensor] = ()  # [E−1] of [U, d], what probes read
    step: int = 0  # optimiser steps taken in this phase: the same for all micro-batches of a step
    model: ExitModel | None = None  # for probes; a recipe that only looks at answers needs none
    notes: Sequence[Any] = ()  # [L] what `between` noted of each layer
    live: Tensor | None = None  # [E, U] bool, units that `onward` had not stopped before the exit; None = all
    labelled: Tensor | None = None  # [U] bool, who has a label, where not everybody has; the others' mean nothing
    lesson: Lesson | None = None  # in distillation, what the teacher said of the same batch
    solved: Tensor | None = None  # [U] bool, who was answered right by a judge; for recipes that ask for `judges`

    def loss(self, logits: Tensor, among: Tensor | None = None) -> Tensor:
        """The task's own loss of some logits [U, C] against the labels, a mean over units, or over those `among` [U].

        Units without a label do not count. Where nobody counts, the loss is 0. Under gradient accumulation the mean is
        that of the micro-batch; see `Recipe.means_over`.
        """
        assert self.labels is not None, "a phase without labels has no task loss"
        each = self.task.loss(logits, self.labels, self.weights)
        masks = [mask for mask in (among, self.labelled) if mask is not None]
        if not masks:
            return each.sum() / max(len(each), 1)  # sentences may be without words, a whole batch of them too
        counted = torch.stack(masks).all(dim=0)
        return torch.where(counted, each, 0.0).sum() / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class Conflict:
    """Two parts of a loss whose gradients may pull against each other, and what becomes of the second.

    The gradients are those of the whole optimiser step, however many micro-batches it has.
    """

    anchor: frozenset[str]  # names of the losses of the first part; all others are the second
    parameters: Sequence[nn.Parameter]  # whose gradients are joined, as one flat vector; the others are added up
    join: Callable[[Tensor, Tensor], Tensor]  # (anchor's gradient [P], the other's [P]) -> what is written [P]


@dataclass(frozen=True)
class Judges:
    """Who says which training rows are hard: copies of the fresh model, each trained on all folds of them but one.

    Each answers the fold that it has not seen. Losses find who was answered right in `EveryExit.solved`.
    """

    recipe: Recipe
    folds: int


class Recipe(ABC):
    """A frozen dataclass of options that says which parts learn when, and from which losses."""

    _kind: ClassVar[str] = "recipe"  # what messages call it

    def __init_subclass__(cls, **more: Any) -> None:
        """Whatever goes wrong in a plugin's recipe is an error that names it."""
        super().__init_subclass__(**more)
        contain(cls, cls._kind, Recipe, _COMPLAINTS)

    def prepare(self, model: ExitModel) -> None:
        """Change a fresh model before anything is trained: share a module, set first weights."""
        return

    def probes(self) -> Mapping[str, Mapping[str, Any]]:
        """Arguments of the probes that this recipe trains, by policy; the artifact remembers them."""
        return {}

    def judges(self) -> Judges | None:
        """Who says, before the first phase, which training rows are hard; None where losses do not ask."""
        return None

    @abstractmethod
    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """What is trained in which order; `epochs` is what the user asked for, for every phase."""

    def between(
        self, phase: str, model: ExitModel, index: int, before: Stream, after: Stream, progress: float = 0.0
    ) -> Stream | Passed:
        """What is read after layer `index` (from 0), by its exit and by the next layer: its states, unless changed.

        `progress` is the share of the phase's steps that have been taken. A `Passed` may tell exit and next layer
        apart, and note something for the losses.
        """
        return after

    def onward(
        self,
        phase: str,
        model: ExitModel,
        exit: int,
        stream: Stream,
        logits: Tensor,
        progress: float = 0.0,
        part: int = 0,
    ) -> Stream:
        """What the layer after an exit (from 1) reads: what the exit read, unless changed.

        `logits` [U, C] are the exit's answers to the units of the stream; with `stream.resting` some of them stop.
        `part` is the number of the micro-batch in its step, from 0. A recipe may leave it out of its arguments.
        """
        return stream

    def conflict(self, phase: str, model: ExitModel) -> Conflict | None:
        """Losses whose gradients are not simply added; None when all are."""
        return None

    @abstractmethod
    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """Named scalars for one batch."""

    def means_over(self, phase: str, name: str) -> Over:
        """What a loss is a mean over, so that micro-batches of any size add up to the loss of one batch.

        The trainer weighs a micro-batch's loss by its share of the step's units, tokens, or pairs of tokens of one
        sequence. "batch" is for what is no mean: micro-batches then count alike. Exact where the loss counts all of
        them; a mean over some units only, such as `EveryExit.loss` among some, weighs as if it counted all.
        """
        return "units"

    def watched(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """Named scalars of one batch to keep an eye on; they are averaged from one progress report to the next."""
        return {}

    def remarks(self, phase: str, averages: Mapping[str, float]) -> Sequence[str]:
        """What the averages of `watched` give reason to warn of. The same warning is given once in a phase."""
        return ()

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to differentiate: their sum."""
        return torch.stack(list(losses.values())).sum()


def _given(found: object) -> str:
    """What a method gave, for a message."""
    return f"tensor {list(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__


def must_be(kind: type | tuple[type, ...], what: str) -> Complaint:
    """The complaint of a method that gives anything but a `kind`."""
    return lambda _, found, *args, **more: None if isinstance(found, kind) else f"must give {what}, not {_given(found)}"


def _not_scalar(found: object) -> bool:
    return not isinstance(found, Tensor) or found.dim() != 0 or not found.is_floating_point()


def _no_scalars(_: Recipe, found: object, *args: object) -> str | None:
    """What is wrong with named scalars."""
    if not isinstance(found, Mapping):
        return f"must give a dict of scalar tensors, not {_given(found)}"
    odd = next((name for name, value in found.items() if _not_scalar(value)), None)
    return None if odd is None else f"must give a dict of scalar tensors; '{odd}' is {_given(found[odd])}"


def _no_losses(recipe: Recipe, found: object, *args: object) -> str | None:
    return "must give at least one scalar" if found == {} else _no_scalars(recipe, found)


def _no_sum(_: Recipe, found: object, *args: object) -> str | None:
    return f"must give a scalar tensor, not {_given(found)}" if _not_scalar(found) else None


def _no_list(kind: type, what: str) -> Complaint:
    def complaint(_: Recipe, found: object, *args: object) -> str | None:
        if not isinstance(found, Sequence) or isinstance(found, str):
            return f"must give a list of {what}, not {_given(found)}"
        odd = next((one for one in found if not isinstance(one, kind)), None)
        return None if odd is None else f"must give a list of {what}; one is {_given(odd)}"

    return complaint


def _no_stream(_: Recipe, found: object, *args: object, **more: object) -> str | None:
    """What is wrong with what the next layer is to read: the same tokens in the same order."""
    streams = (found.onward, found.at_exit or found.onward) if isinstance(found, Passed) else (found,)
    before = next(one for one in reversed(args) if isinstance(one, Stream))
    for stream in streams:
        if not isinstance(stream, Stream):
            return f"must give a stream, not {_given(stream)}"
        if stream.hidden.shape != before.hidden.shape:
            return f"must give states {list(before.hidden.shape)}, not {list(stream.hidden.shape)}"
    return None


_COMPLAINTS: Mapping[str, Complaint | None] = {
    "__post_init__": None,
    "prepare": None,
    "probes": must_be(Mapping, "a dict of arguments by policy"),
    "judges": must_be((Judges, type(None)), "Judges or None"),
    "phases": _no_list(Phase, "Phase"),
    "between": _no_stream,
    "onward": _no_stream,
    "conflict": must_be((Conflict, type(None)), "a Conflict or None"),
    "losses": _no_losses,
    "watched": _no_scalars,
    "remarks": _no_list(str, "sentences"),
    "combine": _no_sum,
}
