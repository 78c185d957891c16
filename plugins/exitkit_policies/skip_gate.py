"""Policy `skip-gate`: a small trained gate before every layer skips it; what ran may exit when it is certain."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, layer_norm

from exitkit import Evidence, ExitPolicy, Passage, Shape, State, hookimpl, knob, label_entropy, normalised_entropy

OFF = 2.0
INNER = 128
HEADS = 2


@dataclass(frozen=True)
class SkipGate(ExitPolicy):
    """Skip a layer where its gate's probability of skipping is at least `skip_at`; leave below an entropy `threshold`.

    SmartBERT (IJCAI 2023; released code). The gate before a layer reads the states that the layer would read. A skipped
    layer hands its input on and asks no exit. If the last layer is skipped, the last exit answers on what there is.

    Where it differs: entropy is divided by ln C, as in policy `entropy`, while the released code compares nats; and
    `skip_at: off` does not ask the gates at all, where the released way to switch them off, a threshold of 1, is
    reached by a sigmoid that rounds up. In regression gates skip and nobody leaves early.
    """

    rewrites: ClassVar[bool] = True
    trained_by: ClassVar[str | None] = "smartbert"

    skip_at: float = knob(0.5, low=0.0, high=1.0, off=OFF, raising="mixed")
    threshold: float = knob(
        0.1, low=0.0, high=1.0, off=-1.0, raising="earlier", per_exit=True, tasks=("classification", "multi-label")
    )

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """Words of one sentence cannot skip different layers; everything else has sequences that can."""
        return "its gates judge whole sequences" if shape.task == "tagging" else None

    @classmethod
    def probe(cls, shape: Shape, kind: str = "linear") -> nn.Module:
        """One gate per layer: `linear` on the mean state or `attention`, the published one."""
        make = GATES.get(str(kind))
        if make is None:
            raise ValueError(f"there is no gate of kind '{kind}'; there are {', '.join(GATES)}")
        return Gates(make(shape.width) for _ in range(shape.layers))

    def gate(self, before: Passage, state: State) -> Tensor | None:
        """Who runs the next layer."""
        if self.skip_at == OFF:
            return None
        assert isinstance(before.probe, Gates), "the loop runs no policy that lacks its probe"
        skipping: Tensor = before.probe(before.layer, before.hidden, before.bounds)
        return skipping.float() < self.skip_at

    def gate_cost(self, before: Passage) -> int:
        """Nothing when gates are off."""
        if self.skip_at == OFF:
            return 0
        assert isinstance(before.probe, Gates), "the loop runs no policy that lacks its probe"
        return before.probe.cost(before.layer, before.lengths)

    def decide(self, seen: Evidence, state: State) -> tuple[Tensor, State]:
        """Each sequence by itself."""
        if seen.task == "regression":
            return torch.zeros_like(seen.live), state
        if seen.task == "multi-label":
            return label_entropy(seen.logits).amax(dim=-1) < self.threshold, state
        return normalised_entropy(seen.logits) < self.threshold, state


class Gates(nn.ModuleList):
    """A gate for every layer, also where layers share their weights."""

    def forward(self, layer: int, hidden: Tensor, bounds: Tensor) -> Tensor:
        """Probability [S] that sequences skip a layer (from 1).

        Args:
            layer: whose gate is asked.
            hidden: [T, d] what the layer would read, sequences end to end.
            bounds: [S + 1] sequence s owns rows bounds[s]:bounds[s + 1].
        """
        said: Tensor = self[layer - 1](hidden, bounds)
        return said.sigmoid()

    def cost(self, layer: int, lengths: tuple[int, ...]) -> int:
        """Multiply-adds of asking a layer's gate about sequences of these lengths."""
        gate: Any = self[layer - 1]
        return int(gate.cost(lengths))


class AttentionGate(nn.Module):
    """dense d→128, tanh; self-attention 128 wide with 2 heads; first token; dense 128→1 (SmartBERT's gate).

    Only the first token's answer is read, so only the first token asks: the same number as attention among all tokens
    with fewer multiplications.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, INNER)
        self.query, self.key, self.value = (nn.Linear(INNER, INNER) for _ in range(3))
        self.out = nn.Linear(INNER, 1)

    def forward(self, hidden: Tensor, bounds: Tensor) -> Tensor:
        """Log-odds of skipping [S]."""
        tokens = hidden.shape[0]
        states = torch.tanh(self.dense(hidden))  # [T, 128]
        owner = owners(bounds, tokens)
        asked = self.query(states[bounds[:-1]])  # [S, 128]
        asked = asked if owner is None else asked[owner]  # [T, 128] the question that each token answers
        scores = (asked * self.key(states)).view(tokens, HEADS, -1).sum(dim=-1) / math.sqrt(INNER // HEADS)
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        shares = softmax_within(exact, owner, bounds).to(states.dtype)  # [T, 2]
        given = shares[:, :, None] * self.value(states).view(tokens, HEADS, -1)
        said: Tensor = self.out(gathered(given.flatten(1), bounds, "sum"))
        return said.squeeze(1)

    def cost(self, lengths: tuple[int, ...]) -> int:
        """Dense, keys and values of every token; one query, its products and the answer of every sequence."""
        tokens, sequences = sum(lengths), len(lengths)
        per_token = self.dense.weight.numel() + self.key.weight.numel() + self.value.weight.numel() + 2 * INNER
        return tokens * per_token + sequences * (self.query.weight.numel() + self.out.weight.numel())


class LinearGate(nn.Module):
    """One linear unit on the mean state. The mean is normalised first: states of pre-norm families grow with depth."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 1)

    def forward(self, hidden: Tensor, bounds: Tensor) -> Tensor:
        """Log-odds of skipping [S]."""
        mean = gathered(hidden, bounds, "mean")
        said: Tensor = self.out(layer_norm(mean, mean.shape[1:]))
        return said.squeeze(1)

    def cost(self, lengths: tuple[int, ...]) -> int:
        """One row of weights per sequence."""
        return len(lengths) * self.out.weight.numel()


GATES: dict[str, Callable[[int], nn.Module]] = {"linear": LinearGate, "attention": AttentionGate}


def owners(bounds: Tensor, tokens: int) -> Tensor | None:
    """The sequence of each token [T]; None where there is only one, for which that much bookkeeping costs as much as
    the rest of a gate.
    """
    return None if bounds.shape[0] == 2 else torch.repeat_interleave(bounds.diff(), output_size=tokens)


def gathered(rows: Tensor, bounds: Tensor, how: Literal["sum", "mean"]) -> Tensor:
    """Sum or mean [S, n] of the rows [T, n] of every sequence; what stands beside it does not enter."""
    if bounds.shape[0] == 2:
        return rows.sum(dim=0, keepdim=True) if how == "sum" else rows.mean(dim=0, keepdim=True)
    return embedding_bag(torch.arange(rows.shape[0], device=rows.device), rows, bounds[:-1], mode=how)


def softmax_within(scores: Tensor, owner: Tensor | None, bounds: Tensor) -> Tensor:
    """Softmax over the tokens of every sequence, column by column: [T, n]. `owner` is what `owners` says."""
    if owner is None:
        return scores.softmax(dim=0)
    sequences = bounds.shape[0] - 1
    lowest = scores.detach().new_full((sequences, scores.shape[1]), -torch.inf)
    highest = lowest.scatter_reduce(0, owner[:, None].expand_as(scores), scores.detach(), "amax")
    weights = (scores - highest[owner]).exp()
    return weights / gathered(weights, bounds, "sum")[owner]


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `skip-gate`."""
    register("skip-gate", SkipGate)
