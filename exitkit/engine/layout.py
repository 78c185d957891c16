"""How the weights of linear layers lie in memory: values and shapes are the same, speed is not."""

from __future__ import annotations

import torch
from torch import nn

LINE = 16
"""Numbers (fp32) in a line of the processor's cache."""


def by_input(model: nn.Module) -> None:
    """Store weights [out, in] with the outputs of each input side by side, in place.

    On a CPU a product of few rows (one sentence, or the few that are left of a batch) reads them faster so; from about
    300 rows on there is no difference. One input's weights begin a cache line later than they need to: where layers
    widen, they would lie a multiple of 2,048 bytes apart and all compete for the same few lines.
    `docs/results/heart.md` has what it saves. Only fp32 is laid out anew. Not for training: fused optimizers walk
    through memory, and take the gaps for weights; `ExitModel.train` takes them out.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear) and part.weight.device.type == "cpu" and part.weight.dtype == torch.float32:
            outputs, inputs = part.weight.shape
            rows = part.weight.new_empty(inputs, outputs + LINE)[:, :outputs]
            part.weight.data = rows.copy_(part.weight.data.t()).t()


def by_output(model: nn.Module) -> None:
    """Store weights [out, in] as torch and transformers do, in place: the inverse of `by_input`."""
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.weight.data = part.weight.data.contiguous()
