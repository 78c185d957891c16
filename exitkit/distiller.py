"""The contract of a distillation method: a recipe whose losses also see what teachers say. Provisional."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedConfig

from exitkit.containment import Complaint, contain
from exitkit.engine.heads import Pooling
from exitkit.engine.model import ExitModel
from exitkit.policy import Shape
from exitkit.recipe import Lesson as Lesson
from exitkit.recipe import Recipe, must_be


@dataclass(frozen=True)
class Reads:
    """What the losses of a phase look at besides the student's answers.

    Layers are numbered from 1; as a place of states, 0 is what the first layer reads.
    """

    answers: bool = True  # the teacher's logits
    hidden: tuple[tuple[int, int], ...] = ()  # (layer of the student, layer of the teacher) whose states are compared
    scores: tuple[tuple[int, int], ...] = ()  # likewise for attention scores before the softmax
    vectors: tuple[tuple[int, int], ...] = ()  # likewise for queries, keys and values
    pooled: tuple[
        tuple[int, int], ...
    ] = ()  # likewise for the vectors of units: of whole sequences or, in tagging, words
    pooling: Pooling = "mean"  # what the teacher's are of a unit's states; the student's are what its last head reads

    @property
    def inside(self) -> bool:
        """Whether they look into the teacher."""
        return bool(self.pooled or self.tokenwise)

    @property
    def tokenwise(self) -> bool:
        """Whether they look into it token by token, so that the student must have the same tokens."""
        return bool(self.hidden or self.attention)

    @property
    def attention(self) -> bool:
        """Whether they look at what attention multiplies."""
        return bool(self.scores or self.vectors)


@dataclass(frozen=True)
class Students:
    """What a student may be when only its size is said."""

    config: Callable[[int, int], PreTrainedConfig]  # of so many layers, of a width
    layers: int  # where nobody says how many
    most_layers: int  # that a search for a speed-up goes up to
    width: int  # where nobody says it; a search goes up to it
    step: int  # a width is a multiple of it
    why: str  # it must be, as a clause
    pieces: bool = False  # whether they are smaller models of the teacher's own family, cut out of it


class Distiller(Recipe):
    """A frozen dataclass of options: a recipe whose losses find the teacher's side in `seen.lesson`.

    Its phases get all rows, labelled or not. `seen.labels` is None when no row has a label; `seen.labelled` tells who
    has one where only some have.
    """

    _kind: ClassVar[str] = "method"

    looks_into: ClassVar[str | None] = None
    """Name of the option that holds the model to look into, a folder or hub id; without one, or empty, the teacher."""

    def __init_subclass__(cls, **more: Any) -> None:
        """Whatever goes wrong in a plugin's method is an error that names it."""
        super().__init_subclass__(**more)
        contain(cls, cls._kind, Distiller, _COMPLAINTS)

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """Why this method cannot teach such a task, as the end of a sentence; None when it can."""
        return None

    def students(self, teacher: ExitModel) -> Students | None:
        """The students that this method builds; None = smaller models of the teacher's own family."""
        return None

    @abstractmethod
    def reads(self, phase: str, student: Shape, teacher: Shape) -> Reads:
        """What the losses of a phase look at; `teacher` is the model that is looked into.

        Raises UsageError for options that do not fit these two models.
        """

    def scaffold(self, student: Shape, teacher: Shape) -> Mapping[str, nn.Module]:
        """Modules that only training needs; arguments as for `reads`.

        They stand in `model.scaffold` and `model.parts()["scaffold"]`.
        """
        return {}


_COMPLAINTS: Mapping[str, Complaint | None] = {
    "refuses": must_be((str, type(None)), "a reason or None"),
    "students": must_be((Students, type(None)), "Students or None"),
    "reads": must_be(Reads, "Reads"),
    "scaffold": must_be(Mapping, "a dict of modules"),
}
