"""Method `minilm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from exitkit.distillation.losses import relations_loss
from exitkit.distillation.then_answers import ThenAnswers
from exitkit.distiller import Distiller, Reads
from exitkit.errors import UsageError
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Over

if TYPE_CHECKING:
    from exitkit.policy import Shape

FEATURES = 16  # as in the paper's students of a base teacher, whose 48 heads have 16 features of its 768


@dataclass(frozen=True)
class MiniLM(ThenAnswers):
    """The student's last layer learns how the teacher's relates tokens, then its exits learn the answers.

    Phase `relations`: KL of q-q, k-k and v-v relations, see `losses.relations_loss`. Phase `answers`: as `logits`.

    MiniLMv2 (2012.15828, section 3; its forerunner is MiniLM, 2002.10957). Nothing but relations between tokens is
    compared, so student and teacher may differ in depth, width and heads, without a projection and without a layer
    map. `relation_heads` must divide both widths; 0 is as many as leave each of them 16 features or more. `layer` is
    the teacher's layer, 0 its last; of teachers with 24 layers the paper takes one a little below the top. Where it
    differs: the paper distils general encoders from unlabelled text and then fine-tunes; here the teacher knows the
    task, and the second phase hands on its answers.
    """

    first: ClassVar[str] = "relations"

    relation_heads: int = 0
    layer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("relation_heads", "layer"):
            if getattr(self, option) < 0:
                raise UsageError(f"method.{option}: {getattr(self, option)} is negative; 0 lets exitkit choose.")

    def inside(self, student: Shape, teacher: Shape) -> Reads:
        """Queries, keys and values of the student's last layer and of one of the teacher's."""
        if self.layer > teacher.layers:
            raise UsageError(
                f"method.layer: the teacher has no layer {self.layer}; it has layers 1 to {teacher.layers}."
            )
        common = gcd(student.width, teacher.width)
        if self.relation_heads and common % self.relation_heads:
            raise UsageError(
                f"method.relation_heads: {self.relation_heads} does not divide both widths, {student.width} of the "
                f"student and {teacher.width} of the teacher. Use a number that divides {common}."
            )
        return Reads(answers=False, vectors=((student.layers, self.layer or teacher.layers),))

    def means_over(self, phase: str, name: str) -> Over:
        """Relations are of tokens."""
        return "tokens" if name == "relations" else "units"

    def inner_losses(self, seen: EveryExit) -> Mapping[str, Tensor]:
        """That of relations."""
        assert seen.lesson is not None
        ((own, theirs),) = seen.lesson.vectors
        heads = self.relation_heads or relation_heads(own.shape[-1], theirs.shape[-1])
        return {"relations": relations_loss(own, theirs, seen.lesson.lengths, heads)}


def relation_heads(student: int, teacher: int) -> int:
    """The most heads that divide both widths and leave FEATURES to each."""
    most = max(1, min(student, teacher) // FEATURES)
    return max(heads for heads in range(1, most + 1) if gcd(student, teacher) % heads == 0)


@hookimpl
def register_distillers(register: Register[Distiller]) -> None:
    """Offer `minilm`."""
    register("minilm", MiniLM)
