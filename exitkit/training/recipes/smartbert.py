"""Recipe `smartbert`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from exitkit.errors import UsageError, one_of
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit, Group, Over, Passed, Phase, Recipe

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel
    from exitkit.engine.stream import Stream

POLICY = "skip-gate"
GATES, EXITS = "gates", "exits"  # the phases
SKIPS_FROM = 0.5
INNER = 128
SKIPPED = "skipped"
CHOICES = {"penalty": ("rate", "published"), "exit_states": ("met", "published")}
WEIGHTS = {"rate": 5.0, "published": 0.04}
SHARES = ("skip_rate", "soft", "layer_contrast", "exit_contrast")


@dataclass(frozen=True)
class SmartBert(Recipe):
    """Gates learn which layers a sequence can do without; then the exits learn what that leaves.

    Phase `gates`: encoder, a skip gate per layer, last exit. Phase `exits`: exits 1..E−1 behind hard gates, no more.

    SmartBERT (IJCAI 2023; released code). g is a gate's probability of skipping, u what its layer makes of its input
    h. The first phase reads on (1 − ĝ)·u + ĝ·h: softly (ĝ = g) for the share `soft` of its steps, then as inference
    does (ĝ = 1 where g ≥ 0.5, else 0, with the gradient of g). Its loss is (1 − η₁)·(CE + w·penalty) + η₁·Σ contrast,
    which draws a token to itself one layer up and away from the other tokens of its sequence. The second phase is
    (1 − η₂)·Σ CE + η₂·contrast, the mean over neighbouring exits, and changes nothing of the first.

    - `penalty`: `rate` is (r − skip_rate)², r the share of layers that inference would skip, with the gradient of g. It
      counts hard gates in the soft part too: a mean of soft ones is held by gates that all say 0.3 and skip nothing.
      `published` is 1/Σ mean g, which only pushes up and fades as gates open. `gate_weight` is w; 0 is 5 for
      `rate` and the published 0.04 for `published`.
    - `exit_states`: `met` trains an exit on the states that it meets at inference, with the sequences that have run a
      layer since the exit before; `published` on u of all sequences, also where the gate skips the layer.
    - `gate`: the kind of gate, `linear` or `attention` as published.
    - `layer_contrast` and `exit_contrast` are η₁ and η₂, `..._temperature` divides similarities.

    Under gradient accumulation the penalty is one of each micro-batch: to be that of the whole step, r would have to be
    known before the first of its micro-batches is differentiated. So `rate` holds every micro-batch to the rate, which
    adds the variance of r between them; use micro-batches of 16 rows or more. Means over those that have run a layer
    weigh as all of their micro-batch do.

    Where it differs: gates and heads, which start from nothing, learn faster (published: 2e-5 for all); contrast leaves
    padding out; the second phase's is a mean over all pairs of exits (released: the last pair is left out and nine
    pairs are divided by ten); frozen parts run without dropout and do not decay; exits and their last layer's head are
    exitkit's own.
    """

    learning_rate: float = 2e-5
    head_learning_rate: float = 2e-4
    gate_learning_rate: float = 5e-4
    gate: str = "linear"
    penalty: str = "rate"
    skip_rate: float = 0.3
    gate_weight: float = 0.0
    soft: float = 0.6
    exit_states: str = "met"
    layer_contrast: float = 0.01
    exit_contrast: float = 0.05
    layer_temperature: float = 0.5
    exit_temperature: float = 0.55

    def __post_init__(self) -> None:
        for option, known in CHOICES.items():
            if getattr(self, option) not in known:
                raise UsageError(one_of(f"recipe.{option}", getattr(self, option), known))
        for option in SHARES:
            if not 0 <= getattr(self, option) <= 1:
                raise UsageError(f"recipe.{option}: {getattr(self, option)} is not a share; give 0 to 1.")
        for option in ("layer_temperature", "exit_temperature"):
            if not getattr(self, option) > 0:
                raise UsageError(f"recipe.{option}: {getattr(self, option)} is not a number above 0.")

    def probes(self) -> Mapping[str, Mapping[str, Any]]:
        """The kind of gate."""
        return {POLICY: {"kind": self.gate}}

    def prepare(self, model: ExitModel) -> None:
        """Projectors for contrast, which only training needs: one per layer, one per exit before the last."""
        if POLICY not in model.probes:
            raise UsageError(
                f"recipe 'smartbert' trains the gates of policy '{POLICY}', which is not there; 'exitkit plugins' "
                "says why."
            )
        width, shape = model.encoder.width, model.shape
        if self.layer_contrast > 0:
            model.scaffold[GATES] = nn.ModuleList(projector(width) for _ in range(shape.layers))
        if self.exit_contrast > 0:
            model.scaffold[EXITS] = nn.ModuleList(projector(width) for _ in range(shape.exits - 1))

    def phases(self, model: ExitModel, epochs: float) -> Sequence[Phase]:
        """`gates`, then `exits` where there are any but the last."""
        if model.task == "tagging":
            raise UsageError("recipe 'smartbert' lets sequences skip layers, not words; use joint or tokee.")
        parts = model.parts()
        exits = list(model.heads.parameters())
        of_exits = {id(parameter) for parameter in exits}
        last = [parameter for parameter in parts["heads"] if id(parameter) not in of_exits]
        first = [
            Group(parts["encoder"], self.learning_rate),
            Group([*last, *_parameters(model.scaffold, GATES)], self.head_learning_rate),
            Group(list(model.probes[POLICY].parameters()), self.gate_learning_rate),
        ]
        second = [Group([*exits, *_parameters(model.scaffold, EXITS)], self.head_learning_rate)]
        return [Phase(GATES, epochs, first), *([Phase(EXITS, epochs, second)] if exits else [])]

    def between(
        self, phase: str, model: ExitModel, index: int, before: Stream, after: Stream, progress: float = 0.0
    ) -> Passed:
        """Layer and its input, mixed by the gate. The gate is asked once, and noted for the losses."""
        skip = model.probes[POLICY](index + 1, before.hidden, before.bounds)  # [S]
        weight = hardened(skip) if phase == EXITS or progress >= self.soft else skip
        share = weight[before.home][:, None].to(after.hidden.dtype)
        mixed = after.carrying((1 - share) * after.hidden + share * before.hidden)
        below_last = index + 1 < model.shape.layers
        read = after if phase == EXITS and self.exit_states == "published" and below_last else mixed
        return Passed(mixed, read, Gated(skip, weight, before, read))

    def means_over(self, phase: str, name: str) -> Over:
        """Contrast is of tokens, and the penalty no mean."""
        return "tokens" if name == "contrast" else "batch" if name == "penalty" else "units"

    def losses(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """By phase."""
        return self._of_gates(seen) if phase == GATES else self._of_exits(seen)

    def _of_gates(self, seen: EveryExit) -> dict[str, Tensor]:
        """Last exit, penalty, and a token beside itself one layer up."""
        notes: Sequence[Gated] = seen.notes
        share = self.layer_contrast
        found = {
            "last": (1 - share) * seen.loss(seen.logits[-1]),
            "penalty": (1 - share) * (self.gate_weight or WEIGHTS[self.penalty]) * self.pressure(notes),
        }
        if share > 0 and len(notes) > 1:
            assert seen.model is not None
            points = [
                normalize(project(note.before.hidden.float()), dim=-1)  # losses stand outside of autocast
                for project, note in zip(_projectors(seen.model, GATES), notes, strict=True)
            ]
            lengths, heat = notes[0].before.lengths, self.layer_temperature
            pairs = [contrast(low, high, lengths, heat, own_counts=True).mean() for low, high in pairwise(points)]
            found["contrast"] = share * torch.stack(pairs).sum()
        return found

    def pressure(self, notes: Sequence[Gated]) -> Tensor:
        """The penalty on the gates of all layers, before it is weighed."""
        if self.penalty == "published":
            return 1 / torch.stack([note.skip.float().mean() for note in notes]).sum()
        return (torch.stack([hardened(note.skip).float().mean() for note in notes]).mean() - self.skip_rate) ** 2

    def _of_exits(self, seen: EveryExit) -> dict[str, Tensor]:
        """Every exit but the last, with those that would ask it, and a token beside itself one exit up."""
        share = self.exit_contrast
        notes: Sequence[Gated] = seen.notes
        asked = self._asked(seen)
        order = notes[0].before.row.argsort()  # from the stream's sequences to the batch's
        found = {
            f"exit_{number}": (1 - share) * seen.loss(logits, None if self.exit_states == "published" else ran[order])
            for number, (logits, ran) in enumerate(zip(seen.logits[:-1], asked, strict=True), start=1)
        }
        if share > 0 and len(asked) > 1:
            points = self._token_features(seen)
            lengths, heat, home = notes[0].before.lengths, self.exit_temperature, notes[0].before.home
            pairs = []
            for exit in range(len(asked) - 1):
                each = contrast(points[exit], points[exit + 1], lengths, heat, own_counts=False)
                both = (asked[exit] & asked[exit + 1])[home]
                pairs.append(torch.where(both, each, 0.0).sum() / both.sum().clamp(min=1))
            found["contrast"] = share * torch.stack(pairs).mean()
        return found

    def _asked(self, seen: EveryExit) -> list[Tensor]:
        """Which sequences [S] every exit but the last learns from."""
        found, below = [], 0
        for layer in seen.layers[:-1]:
            ran = torch.stack([note.weight == 0 for note in seen.notes[below:layer]]).any(dim=0)
            found.append(torch.ones_like(ran) if self.exit_states == "published" else ran)
            below = layer
        return found

    def _token_features(self, seen: EveryExit) -> list[Tensor]:
        """For every exit but the last, what its dense layer makes of each token, projected to unit length [T, 128]."""
        assert seen.model is not None
        found = []
        for layer, head, project in zip(
            seen.layers, seen.model.exit_heads, _projectors(seen.model, EXITS), strict=False
        ):
            states = seen.model.encoder.finished(seen.notes[layer - 1].read).hidden
            wide = torch.cat([states, states], dim=-1) if head.pooling == "mix" else states
            found.append(normalize(project(torch.tanh(head.dense(wide.float()))), dim=-1))
        return found

    def watched(self, phase: str, seen: EveryExit) -> Mapping[str, Tensor]:
        """How much inference would skip."""
        return {SKIPPED: torch.stack([hardened(note.skip).float().mean() for note in seen.notes]).mean()}

    def remarks(self, phase: str, averages: Mapping[str, float]) -> Sequence[str]:
        """Gates that skip everything or nothing."""
        if averages[SKIPPED] < 0.001:
            return ["the gates skip nothing. Raise recipe.skip_rate, recipe.gate_weight or recipe.gate_learning_rate"]
        if averages[SKIPPED] > 0.999:
            return [
                "the gates skip every layer. Lower recipe.skip_rate, recipe.gate_weight or recipe.gate_learning_rate"
            ]
        return ()


@dataclass(frozen=True)
class Gated:
    """What the losses need to know of a layer."""

    skip: Tensor  # [S] g, the probability of skipping it
    weight: Tensor  # [S] ĝ, what took its place: g itself, or 0 and 1
    before: Stream  # what it read
    read: Stream  # what its exit reads


def hardened(skip: Tensor) -> Tensor:
    """1 where g ≥ 0.5 and else 0, exactly, with the gradient of g (straight-through)."""
    return (skip >= SKIPS_FROM).to(skip.dtype) + (skip - skip.detach())


def projector(width: int) -> nn.Module:
    """Dense d→128, LayerNorm, tanh, dense 128→128."""
    return nn.Sequential(nn.Linear(width, INNER), nn.LayerNorm(INNER), nn.Tanh(), nn.Linear(INNER, INNER))


def contrast(low: Tensor, high: Tensor, lengths: Sequence[int], temperature: float, *, own_counts: bool) -> Tensor:
    """−ln(e^{s_ii/t} / Σ_j e^{s_ij/t}) of every token i, s_ij its similarity to token j of its own sequence: [T].

    Args:
        low: [T, p] of unit length, sequences end to end: the tokens that are judged.
        high: [T, p] those that they are compared with.
        lengths: tokens of each sequence.
        temperature: t.
        own_counts: whether j = i is in the sum. If not, the only token of a sequence has nothing to be told from: 0.
    """
    found, start = [], 0
    for length, run in groupby(lengths):  # sequences are in order of length
        count = len(list(run))
        rows = slice(start, start + count * length)
        start += count * length
        scores = low[rows].view(count, length, -1) @ high[rows].view(count, length, -1).mT / temperature
        own = scores.diagonal(dim1=1, dim2=2)  # [count, length]
        if not own_counts and length == 1:
            found.append(0 * own.flatten())
            continue
        if not own_counts:
            scores = scores.masked_fill(torch.eye(length, dtype=torch.bool, device=scores.device), -torch.inf)
        found.append((scores.logsumexp(dim=-1) - own).flatten())
    return torch.cat(found)


def _projectors(model: ExitModel, phase: str) -> Sequence[nn.Module]:
    return list(model.scaffold[phase])  # type: ignore[call-overload,no-any-return]  # a ModuleDict forgets what it holds


def _parameters(scaffold: nn.ModuleDict, phase: str) -> list[nn.Parameter]:
    return list(scaffold[phase].parameters()) if phase in scaffold else []


@hookimpl
def register_recipes(register: Register[Recipe]) -> None:
    """Offer `smartbert`."""
    register("smartbert", SmartBert)
