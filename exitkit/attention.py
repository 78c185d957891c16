"""Attention over a packed stream. Padding exists here or nowhere.

Two ways to compute the same thing: `by_runs` (CPU) makes one call for every run of sequences with equal lengths and
never multiplies padding; `padded` (GPU) makes a single call over rectangular queries and keys. Queries may be fewer
than keys: halted words ask nothing and still answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from exitkit.stream import Stream


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
    runs = list(_runs(stream))
    queries = query.split([count * asked for count, asked, _ in runs])
    keys = key.split([count * length for count, _, length in runs])
    values = value.split([count * length for count, _, length in runs])
    spans = _spans(stream, runs) if window is not None else [None] * len(runs)
    contexts = []
    for (count, asked, length), q, k, v, span in zip(runs, queries, keys, values, spans, strict=True):
        near = None
        if window is not None and span is not None and length > window + 1:
            from_, to = span
            near = ((from_[:, :, None] - to[:, None, :]).abs() <= window)[:, None]  # [count, 1, asked, length]
        context = scaled_dot_product_attention(
            q.unflatten(0, (count, asked)).transpose(1, 2),
            k.unflatten(0, (count, length)).transpose(1, 2),
            v.unflatten(0, (count, length)).transpose(1, 2),
            attn_mask=near,
            dropout_p=dropout,
            scale=scale,
        )  # [count, H, asked, D]
        contexts.append(context.transpose(1, 2).flatten(2).flatten(0, 1))
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
    keys, key_real = _grid(stream.bounds, max(stream.lengths))
    if stream.active is None:
        queries, query_real = keys, key_real
    else:
        asking = torch.tensor([0, *stream.asking], device=query.device).cumsum(0)
        queries, query_real = _grid(asking, max(stream.asking))
    mask = key_real[:, None, :]  # [S, 1, longest]
    if window is not None and max(stream.lengths) > window + 1:
        asked_from = stream.position if stream.active is None else stream.position[stream.active]
        distance = asked_from[queries][:, :, None] - stream.position[keys][:, None, :]
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


def _runs(stream: Stream) -> Iterator[tuple[int, int, int]]:
    """(sequences, queries of each, keys of each) of every run of alike neighbours."""
    for (asked, length), alike in groupby(zip(stream.asking, stream.lengths, strict=True)):
        yield sum(1 for _ in alike), asked, length


def _spans(stream: Stream, runs: list[tuple[int, int, int]]) -> list[tuple[Tensor, Tensor]]:
    """Places of the queries and of the keys of every run: ([count, asked], [count, length])."""
    asked_from = stream.position if stream.active is None else stream.position[stream.active]
    from_ = asked_from.split([count * asked for count, asked, _ in runs])
    to = stream.position.split([count * length for count, _, length in runs])
    return [
        (a.unflatten(0, (count, asked)), b.unflatten(0, (count, length)))
        for (count, asked, length), a, b in zip(runs, from_, to, strict=True)
    ]


def _grid(bounds: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Row numbers of a rectangular [S, longest] view of packed rows, and which of its cells are real."""
    steps = torch.arange(longest, device=bounds.device)
    real = steps < bounds.diff()[:, None]
    return (bounds[:-1, None] + steps).where(real, bounds[:-1, None]), real
