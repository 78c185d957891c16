"""Method `layers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from exitkit.distillation.layer_map import layer_map
from exitkit.distillation.losses import answer_losses, check_answers, hidden_loss, scores_loss
from exitkit.distiller import Distiller, Reads
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Group, Phase

if TYPE_CHECKING:
    from exitkit.model import ExitModel
    from exitkit.policy import Shape

LAYERS = "layers"
ANSWERS = "answers"
PROJECTION = "projection"


@dataclass(frozen=True)
class Layers(Distiller):
    """The student's layers learn what goes on in the teacher's, then its exits learn the answers.

    Phase `layers`: Σ MSE(scores) + Σ MSE(W·states, teacher's) over the layer map. Phase `answers`: as `logits`.

    TinyBERT (1909.10351, sections 3 and 4.2; released code): attention scores before the softmax and hidden states,
    those of the embeddings among them, plain sums; W is one learned layer for all, here only where widths differ. Then
    soft targets, released with T = 1 and without labels (`hard` 0). Where it differs: any number of layers
    (`layer_map`) and heads, no loss over padding, and the second phase teaches every exit. In regression the released
    code learns from labels alone; here `hard` says how much.
    """

    learning_rate: float = 5e-5
    answers_learning_rate: float = 3e-5
    head_learning_rate: float = 3e-4
    layer_map: str = "uniform"
    attention: bool = True
    temperature: float = 1.0
    hard: float = 0.5
    loss: str = "soft"

    def __post_init__(self) -> None:
        check_answers(self.loss, self.temperature, self.hard)

    def reads(self, phase: str, student: Shape, teacher: Shape) -> Reads:
        """States of mapped layers and of the embeddings, scores of mapped layers; then answers."""
        mapped = layer_map(str(self.layer_map), student.layers, teacher.layers)  # refused before anything is trained
        if phase == ANSWERS:
            return Reads()
        pairs = tuple((layer, theirs) for layer, theirs in enumerate(mapped, start=1) if theirs)
        return Reads(answers=False, hidden=((0, 0), *pairs), scores=pairs if self.attention else ())

    def scaffold(self, student: Shape, teacher: Shape) -> Mapping[str, nn.Module]:
        """A projection where widths differ."""
        return {} if student.width == teacher.width else {PROJECTION: nn.Linear(student.width, teacher.width)}

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """`layers`, then `answers`."""
        parts = model.parts()
        first = [Group(parts["encoder"], self.learning_rate), Group(parts["scaffold"], self.head_learning_rate)]
        second = [Group(parts["encoder"], self.answers_learning_rate), Group(parts["heads"], self.head_learning_rate)]
        return [Phase(LAYERS, epochs, first), Phase(ANSWERS, epochs, second)]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The layers' losses, or the answers'."""
        if phase == ANSWERS:
            return answer_losses(seen, self.loss, self.temperature, self.hard)
        assert seen.lesson is not None
        assert seen.model is not None
        projection = getattr(seen.model.scaffold, PROJECTION, None)
        states = {f"hidden_{n}": hidden_loss(*pair, projection) for n, pair in enumerate(seen.lesson.hidden)}
        scores = {f"scores_{n}": scores_loss(*pair) for n, pair in enumerate(seen.lesson.scores, start=1)}
        return {**states, **scores}


@hookimpl
def register_distillers(register: Register[Distiller]) -> None:
    """Offer `layers`."""
    register("layers", Layers)
