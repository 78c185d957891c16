"""Method `layers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from exitkit.distillation.layer_map import layer_map
from exitkit.distillation.losses import hidden_loss, scores_loss
from exitkit.distillation.then_answers import ThenAnswers
from exitkit.distiller import Distiller, Reads
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Over

if TYPE_CHECKING:
    from exitkit.policy import Shape

PROJECTION = "projection"


@dataclass(frozen=True)
class Layers(ThenAnswers):
    """The student's layers learn what goes on in the teacher's, then its exits learn the answers.

    Phase `layers`: Σ MSE(scores) + Σ MSE(W·states, teacher's) over the layer map. Phase `answers`: as `logits`.

    TinyBERT (1909.10351, sections 3 and 4.2; released code): attention scores before the softmax and hidden states,
    those of the embeddings among them, plain sums; W is one learned layer for all, here only where widths differ. Then
    soft targets, released with T = 1 and without labels (`hard` 0). Where it differs: any number of layers
    (`layer_map`) and heads, no loss over padding, and the second phase teaches every exit. In regression the released
    code learns from labels alone; here `hard` says how much.
    """

    first: ClassVar[str] = "layers"

    layer_map: str = "uniform"
    attention: bool = True

    def inside(self, student: Shape, teacher: Shape) -> Reads:
        """States of mapped layers and of the embeddings, scores of mapped layers."""
        mapped = layer_map(str(self.layer_map), student.layers, teacher.layers)
        pairs = tuple((layer, theirs) for layer, theirs in enumerate(mapped, start=1) if theirs)
        return Reads(answers=False, hidden=((0, 0), *pairs), scores=pairs if self.attention else ())

    def scaffold(self, student: Shape, teacher: Shape) -> Mapping[str, nn.Module]:
        """A projection where widths differ."""
        return {} if student.width == teacher.width else {PROJECTION: nn.Linear(student.width, teacher.width)}

    def means_over(self, phase: str, name: str) -> Over:
        """States are of tokens, scores of pairs of them."""
        return "tokens" if name.startswith("hidden") else "pairs" if name.startswith("scores") else "units"

    def inner_losses(self, seen: EveryExit) -> Mapping[str, Tensor]:
        """Those of states and of scores."""
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
