"""Adversarial training: every batch is seen a second time with its embeddings moved where the loss grows fastest."""

from __future__ import annotations

import torch
from torch import Tensor

from exitkit.engine.stream import Stream


class FastGradient:
    """FGM (Miyato et al., 1605.07725, eq. 5), as AT-BERT uses it: r = ε · g / ‖g‖ on the embedding output.

    g is the gradient of the loss by the embeddings of one sequence, and the norm is taken over that sequence alone, so
    the step of a sample does not depend on its batch. (Common implementations perturb the embedding matrix with one
    norm for the whole batch.) Sequences whose gradient is zero or not finite are left as they are. Both passes add
    to the gradients.

    Use it twice per micro-batch: `embedded=watch` in the pass before backward, `embedded=perturb` in the one after.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self._embedded: Tensor | None = None

    def watch(self, stream: Stream) -> Stream:
        """Remember the embeddings of this pass, to read their gradient later."""
        hidden = stream.hidden
        if hidden.requires_grad:
            hidden.retain_grad()
        else:  # frozen embeddings
            hidden = hidden.detach().requires_grad_()
        self._embedded = hidden
        return stream.carrying(hidden)

    def perturb(self, stream: Stream) -> Stream:
        """The embeddings of the same batch, moved along the gradient of the pass before."""
        assert self._embedded is not None, "watch comes first"
        gradient, self._embedded = self._embedded.grad, None
        if gradient is None:
            return stream
        return stream.carrying(stream.hidden + perturbation(gradient, stream, self.epsilon).to(stream.hidden.dtype))


def perturbation(gradient: Tensor, stream: Stream, epsilon: float) -> Tensor:
    """ε · g / ‖g‖ in fp32 for packed gradients [T, d], the norm over all tokens of a sequence."""
    gradient = gradient.detach().float()
    squares = gradient.square().sum(dim=1)
    norm = squares.new_zeros(stream.sequences).index_add(0, stream.home, squares).sqrt()
    usable = torch.isfinite(norm) & (norm > 0)
    scale = torch.where(usable, epsilon / norm, 0.0)
    return torch.where(usable[stream.home, None], gradient * scale[stream.home, None], 0.0)
