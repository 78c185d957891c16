"""Recipe `tokee`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exitkit.engine.stream import Stream, resting
from exitkit.errors import UsageError, one_of
from exitkit.hookspecs import Register, hookimpl
from exitkit.policy import normalised_entropy, window_max
from exitkit.recipe import EveryExit, Phase, Recipe
from exitkit.training.recipes.joint import Joint

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel

SAMPLING = "self-sampling"
WINDOWS = (1, 3, 5, 9, 15)
GROWTHS = (1.0, 1.5, 2.0)
AGGRESSIVE, WHOLE = 0.2, 0.4  # shares of the sentences: the eagerest setting, nobody leaves; the rest at random
SUPERVISED = ("live", "all")


@dataclass(frozen=True)
class Tokee(Joint):
    """All exits at once, then once more with words that leave while the model learns.

    Phase `joint`: Σ ℓ·CE_ℓ / Σ ℓ. Phase `self-sampling`: the same while words leave, as they do at inference.

    TokEE (Li et al., 2105.13878, sections 3.4 and 4.2; released code). In the second phase every sentence of a batch
    draws a window, a threshold, and by how much that grows from exit to exit. A word whose window is less uncertain
    than the threshold stops: its state is copied upwards and goes on as key and value, so that the words that stay
    learn to read such states. By the sandwich rule a fifth of the sentences takes the eagerest setting and two fifths
    let nobody leave. An exit's loss is a mean over the words that have not left before it (`supervised: live`, as the
    paper means it), or over all (`all`, which is what the released code computes).

    Under gradient accumulation settings are drawn micro-batch by micro-batch, and a micro-batch's mean over the words
    that have not left weighs as its words do.

    Where it differs: exits are decided by the answers of the same pass, dropout included, not by those that the first
    phase's model once gave; the distance to the first phase's losses ("flooding") is left out; learning rates are those
    of `joint`, without a frozen start; settings are those that `token-window` is calibrated over, `threshold` up to
    `most` at the first exit, and [CLS] and [SEP] halt with the first word as they do in that policy's default.
    """

    most: float = 0.5
    supervised: str = "live"

    def __post_init__(self) -> None:
        if self.supervised not in SUPERVISED:
            raise UsageError(one_of("recipe.supervised", self.supervised, SUPERVISED))
        if not 0 < self.most <= 1:
            raise UsageError(f"recipe.most is {self.most}; it must be above 0 and at most 1.")

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """`joint`, then `self-sampling` with the same parts."""
        if model.task != "tagging":
            raise UsageError("recipe 'tokee' is for tagging; use joint.")
        if not model.shape.words_halt:
            raise UsageError("recipe 'tokee' lets words halt, which this family cannot; use joint.")
        (joint,) = super().phases(model, epochs)
        return [joint, Phase(SAMPLING, epochs, joint.groups)]

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
        """Let words stop by the settings that their sentences drew for this step and its micro-batch."""
        if phase != SAMPLING or exit == model.shape.exits:
            return stream
        windows, thresholds, growths = draw(stream.sequences, progress, self.most, part)
        limits = (thresholds * growths ** (exit - 1)).clamp(max=1.0)
        own = normalised_entropy(logits.detach())
        counted = torch.where(stream.live, own, 0.0)  # who has left counts as certain
        around = torch.stack([window_max(counted, stream.sequence, window) for window in WINDOWS])  # [W, U]
        of_word = windows.to(own.device)[stream.sequence]
        widest = around.gather(0, of_word[None])[0]
        leave = widest < limits.to(own.device)[stream.sequence]
        return resting(stream, stream.live & ~leave, context_halts=True)

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """The task's loss at every exit, weighted by depth."""
        if phase != SAMPLING or self.supervised == "all" or seen.live is None:
            return super().losses(phase, seen)
        total = sum(seen.layers)
        return {
            f"exit_{number}": layer / total * seen.loss(logits, among=live)
            for number, (layer, logits, live) in enumerate(zip(seen.layers, seen.logits, seen.live, strict=True), 1)
        }


def draw(sentences: int, progress: float, most: float, part: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Settings of the sentences of a batch: places [S] in WINDOWS, thresholds [S] from 0.01 to `most`, growths [S].

    A function of the training's seed, of how far it is, and of the micro-batch's number in its step (`part`), so that
    all exits of a pass see the same settings without anybody keeping them, a resumed training draws what an
    uninterrupted one does, and a step has as many settings as sentences however it is cut into micro-batches.
    """
    seed = hash((torch.initial_seed(), round(progress * 1e9))) + part
    random = torch.Generator().manual_seed(seed & (2**63 - 1))
    windows = torch.randint(len(WINDOWS), (sentences,), generator=random)
    low = math.log(0.01)
    thresholds = torch.exp(low + (math.log(most) - low) * torch.rand(sentences, generator=random))
    kind = torch.rand(sentences, generator=random)
    eager, whole = kind < AGGRESSIVE, kind >= 1 - WHOLE
    smallest = torch.rand(sentences, generator=random) < 0.5  # eager is the smallest window or the largest threshold
    windows = torch.where(eager & smallest, 0, windows)
    thresholds = torch.where(eager & ~smallest, most, thresholds)
    growths = torch.tensor(GROWTHS)[torch.randint(len(GROWTHS), (sentences,), generator=random)]
    return windows, torch.where(whole, -1.0, thresholds), growths


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `tokee`."""
    register("tokee", Tokee)
