"""Attention over a packed stream. Padding exists here or nowhere.

Two ways to compute the same thing: `by_runs` (CPU) makes one call for every run of sequences with equal lengths and
never multiplies padding; `padded` (GPU) makes a single call over rectangular queries and keys. Queries may be fewer
than keys: halted words ask nothing and still answer.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from exitkit.engine.stream import Stream


def attend(
    query: Tensor,  # [Q, H, D]
    key: Tensor,  # [T, H, D]
    value: Tensor,  # [T, H, D]
    stream: Stream,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:  # [Q, H * D]
    """Every active token looks at all tokens of its own sequence, or at those at most `window` places away."""
    method = by_runs if query.device.type == "cpu" else padded
    return method(query, key, value, stream, window=window, dropout=dropout, scale=scale)


def by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stream: Stream,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """One call for each run of neighbours with as many queries and as many keys. Arguments as in `attend`."""
    heads, size = query.shape[1:]
    asked_from = None if window is None else _asked_from(stream)
    contexts, q0, k0 = [], 0, 0
    for count, asked, length in _runs(stream.asking, stream.lengths):
        q1, k1 = q0 + count * asked, k0 + count * length
        near = None
        if window is not None and asked_from is not None and length > window + 1:
            distance = asked_from[q0:q1].view(count, asked, 1) - stream.position[k0:k1].view(count, 1, length)
            near = (distance.abs() <= window)[:, None]  # [count, 1, asked, length]
        context = scaled_dot_product_attention(
            query[q0:q1].view(count, asked, heads, size).transpose(1, 2),
            key[k0:k1].view(count, length, heads, size).transpose(1, 2),
            value[k0:k1].view(count, length, heads, size).transpose(1, 2),
            attn_mask=near,
            dropout_p=dropout,
            scale=scale,
        )  # [count, H, asked, D]
        contexts.append(context.transpose(1, 2).reshape(count * asked, heads * size))
        q0, k0 = q1, k1
    return torch.cat(contexts) if len(contexts) > 1 else contexts[0]


def padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stream: Stream,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """One call over [S, longest]: few launches, some wasted multiplications. Arguments as in `attend`."""
    keys, key_real = grid(stream.bounds, max(stream.lengths))
    if stream.active is None:
        queries, query_real = keys, key_real
    else:
        asking = torch.tensor([0, *stream.asking], device=query.device).cumsum(0)
        queries, query_real = grid(asking, max(stream.asking))
    mask = key_real[:, None, :]  # [S, 1, longest]
    if window is not None and max(stream.lengths) > window + 1:
        distance = _asked_from(stream)[queries][:, :, None] - stream.position[keys][:, None, :]
        # A padding query keeps its key mask, so that no row of the softmax is empty.
        mask = mask & ((distance.abs() <= window) | ~query_real[:, :, None])
    context = scaled_dot_product_attention(
        query[queries].transpose(1, 2),
        key[keys].transpose(1, 2),
        value[keys].transpose(1, 2),
        attn_mask=mask[:, None],
        dropout_p=dropout,
        scale=scale,
    )  # [S, H, longest, D]
    return context.transpose(1, 2).flatten(2)[query_real]


def scores(query: Tensor, key: Tensor, stream: Stream) -> Tensor:
    """Scaled products of queries and keys [T, H, D] before the softmax, with every token active.

    Returns [P, H]: a row for each of the n² pairs (query, key) of every sequence, one sequence after the other, the
    keys of a query side by side. Nobody is padded, so P is Σ n².
    """
    heads, size = query.shape[1:]
    found, start = [], 0
    for count, _, length in _runs(stream.lengths, stream.lengths):
        end = start + count * length
        asked = query[start:end].view(count, length, heads, size).permute(0, 2, 1, 3)
        given = key[start:end].view(count, length, heads, size).permute(0, 2, 3, 1)
        found.append(((asked @ given) * size**-0.5).permute(0, 2, 3, 1).reshape(-1, heads))
        start = end
    return torch.cat(found)


def _asked_from(stream: Stream) -> Tensor:
    """[Q] place of each active token in its own sequence."""
    return stream.position if stream.active is None else stream.position[stream.active]


@lru_cache(maxsize=256)
def _runs(asking: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """(sequences, queries of each, keys of each) of every run of alike neighbours; the same for all layers."""
    alike = groupby(zip(asking, lengths, strict=True))
    return tuple((sum(1 for _ in run), asked, length) for (asked, length), run in alike)


def grid(bounds: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Row numbers of a rectangular [S, longest] view of packed rows, and which of its cells are real."""
    steps = torch.arange(longest, device=bounds.device)
    real = steps < bounds.diff()[:, None]
    return (bounds[:-1, None] + steps).where(real, bounds[:-1, None]), real
