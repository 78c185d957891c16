"""Recipe `berxit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from exitkit.errors import UsageError
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Group, Phase, Recipe

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel

PROBE = "learned"


@dataclass(frozen=True)
class Berxit(Recipe):
    """The last exit and all exits take turns; a probe learns when an answer is wrong.

    Even steps: CE of the last exit. Odd steps: Σ_{e<E} CE_e and, without the probe, CE of the last exit too.

    BERxiT (EACL 2021, sections 3.2 and 3.3; released code "alternate" and "alternate-lte"). With `learn_to_exit` every
    step adds the mean squared error of the probe's u = σ(w·c + b), one w and b for all exits, c being a head's hidden
    state, against the error: 1 where the exit answers wrongly, in regression |tanh(z − y)|. c is not detached, as
    released: the probe's loss trains heads and encoder too.

    Where it differs: turns change with the optimiser step, not with the micro-batch, so that accumulation does not mix
    them; the last exit's state is not among the probe's, since nobody decides there; c is read before dropout, where
    the released code reads it behind.
    """

    learning_rate: float = 2e-5
    head_learning_rate: float = 2e-5
    learn_to_exit: bool = True

    def prepare(self, model: ExitModel) -> None:
        """Without the probe there is none to save."""
        if not self.learn_to_exit and PROBE in model.probes:
            del model.probes[PROBE]

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """A single phase, `alternating`. Raises UsageError: only one exit, so that nobody can take turns."""
        if len(model.exits) < 2:
            raise UsageError("recipe 'berxit' needs an exit before the last; give --exits more layers.")
        parts = model.parts()
        heads = [*parts["heads"], *parts["probes"]]
        groups = [Group(parts["encoder"], self.learning_rate), Group(heads, self.head_learning_rate)]
        return [Phase("alternating", epochs, groups)]

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """By whose turn it is."""
        early = {f"exit_{number}": seen.loss(logits) for number, logits in enumerate(seen.logits[:-1], start=1)}
        last = {"last": seen.loss(seen.logits[-1])}
        if seen.step % 2 == 0:
            found: dict[str, Tensor] = last
        else:
            found = early if self.learn_to_exit else {**early, **last}
        if self.learn_to_exit and seen.features:
            assert seen.model is not None
            probe = seen.model.probes[PROBE]
            said = torch.stack([probe(features)[:, 0] for features in seen.features])
            found = {**found, "probe": mse_loss(said.float(), errors(seen))}
        return found


def errors(seen: EveryExit) -> Tensor:
    """What the probe learns: how wrong exits 1..E−1 are, between 0 and 1, detached [E−1, U]."""
    logits, labels = seen.logits[:-1].detach(), seen.labels
    assert labels is not None
    if seen.task.kind == "regression":
        return (logits.squeeze(-1).float() - labels.float()).tanh().abs()
    if seen.task.kind == "multi-label":
        return ((logits > 0) != labels.bool()).any(dim=-1).float()
    return (logits.argmax(dim=-1) != labels).float()


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `berxit`."""
    register("berxit", Berxit)
