"""Recipe `difficulty`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exitkit.errors import UsageError
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Judges, Phase, Recipe
from exitkit.tasks import Classification
from exitkit.training.recipes.two_stage import FINE_TUNE, TwoStage

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel


@dataclass(frozen=True)
class Difficulty(TwoStage):
    """For the small model of a cascade: as two-stage, and less sure of texts that are too hard for it.

    First CE of the last exit + `weight` · R, then Σ CE of exits 1..E−1 with everything else frozen.

    CascadeBERT's difficulty-aware regularisation (2012.14682, section 3.2). For every easy row of a batch a hard one
    is drawn, and R is the mean of max(0, `margin` − (p of the easy − p of the hard)), p being the largest probability.
    R is 0 where a batch has only rows of one kind; both p carry a gradient. Under gradient accumulation hard rows are
    drawn from the micro-batch, so use ones of 16 rows or more.

    Which rows are hard is found out first: `folds` judges, each this model trained without R on all folds of the rows
    but one, answer that fold; what they get wrong is hard. The published labels come in a file made of five seeds'
    runs, and what makes it is not released. Judges are asked about rows that they have not seen, because a model gets
    nearly all rows right that it was trained on, so that hardly any would be hard. They cost `folds` − 1 times the
    first phase more.

    Where it differs besides: the released code trains the large model in the same step. Since the two share nothing,
    any recipe may train that one, by itself.
    """

    margin: float = 0.5
    weight: float = 0.5
    folds: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1:
            raise UsageError(f"recipe.margin: {self.margin} is not a difference of probabilities, from 0 to 1.")
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"recipe.weight: {self.weight} is not a number from 0 on.")
        if self.folds < 2:
            raise UsageError(f"recipe.folds: {self.folds} is too few; a judge needs rows that it has not seen, so 2.")

    def judges(self) -> Judges:
        """The first phase of `two-stage`, at the same learning rates."""
        return Judges(Unregularised(self.learning_rate, self.head_learning_rate), self.folds)

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """`fine-tune`, also of fine-tuned classifiers, and `exits` if there are any before the last.

        Raises UsageError: a model whose answers have no single probability.
        """
        if model.task != Classification.kind:
            raise UsageError(f"recipe 'difficulty' is for texts of one class each; this model is for {model.task}.")
        tuned, exits = super().phases(model, epochs)
        tuned = replace(tuned, fine_tunes=False)
        return [tuned, exits] if model.heads else [tuned]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """As in two-stage, with R beside the last exit's."""
        found = super().losses(phase, seen)
        if phase != FINE_TUNE:
            return found
        assert seen.solved is not None, "the recipe asks for judges"
        return {**found, "margin": self.weight * margin_loss(seen.logits[-1], seen.solved, self.margin)}


@dataclass(frozen=True)
class Unregularised(TwoStage):
    """What the judges learn: the full model's answer only."""

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """`fine-tune`, also of fine-tuned classifiers."""
        return [replace(super().phases(model, epochs)[0], fine_tunes=False)]


def margin_loss(logits: Tensor, easy: Tensor, margin: float) -> Tensor:
    """R of logits [U, C] whose rows are `easy` [U] or hard. torch's generator draws hard ones, with replacement."""
    sure = logits.float().softmax(dim=-1).amax(dim=-1)
    of_easy, of_hard = sure[easy], sure[~easy]
    if not len(of_easy) or not len(of_hard):
        return sure.sum() * 0
    drawn = torch.randint(len(of_hard), (len(of_easy),), device=sure.device)
    return (margin - (of_easy - of_hard[drawn])).clamp(min=0).mean()


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `difficulty`."""
    register("difficulty", Difficulty)
