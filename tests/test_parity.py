"""Our arithmetic over a stock model's weights gives the stock model's answers, and parity would notice if not.

The last exit's answers and gradients are tested by `exitkit.testing.check_family`, in test_check_family.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import FAMILIES, LENGTHS, batch, difference, stock, with_exits
from torch import Tensor
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.mpnet import modeling_mpnet

from exitkit.engine import attention, stream
from exitkit.engine.encoders import albert, base, bert, bilstm, modernbert, padded
from exitkit.engine.loop import every_exit
from exitkit.errors import UsageError
from exitkit.plugins import installed

EXACT = 1e-9


def tolerance(family: str) -> float:
    """Stock ModernBERT turns its queries and keys in fp32 whatever the model's format, so it is no float64 model."""
    return 2e-5 if family.startswith("modernbert") else EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_words_get_the_stock_taggers_answer_at_their_first_piece(family: str) -> None:
    model = stock(family, tags=True)
    rows = batch(model)
    words = torch.full_like(rows["input_ids"], -1)
    for row, length in enumerate(LENGTHS):
        words[row, 1 : length - 1] = torch.arange(length - 2) // 2  # words of two pieces between [CLS] and [SEP]
    with torch.no_grad():
        ours = every_exit(with_exits(model), {**rows, "words": words})[-1]
        theirs = model(**rows).logits
    first = (words >= 0) & (words != torch.nn.functional.pad(words, (1, 0), value=-2)[:, :-1])
    assert ours.shape[0] == first.sum()
    assert (ours - theirs[first]).abs().max() <= tolerance(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_the_stock_layer(family: str) -> None:
    model = stock(family)
    rows = batch(model)
    encoder = with_exits(model).encoder
    tokens, now = stream.pack(rows)
    with torch.no_grad():
        now = now.carrying(encoder.embed(tokens))
        theirs = model(**rows, output_hidden_states=True).hidden_states
        real = rows["attention_mask"].bool()
        order = sorted(range(len(LENGTHS)), key=LENGTHS.__getitem__)
        blocks = (len(theirs) - 1) // len(encoder.blocks)  # a layer of ALBERT may be several
        for index in range(len(encoder.blocks)):
            now = now.carrying(encoder.layer(index, now))
            mine = encoder.finished(now).hidden if index == len(encoder.blocks) - 1 else now.hidden
            expected = torch.cat([theirs[(index + 1) * blocks][row][real[row]] for row in order])
            assert (mine - expected).abs().max() <= tolerance(family), f"layer {index + 1}"


@pytest.mark.parametrize("family", FAMILIES)
def test_feed_forwards_in_pieces_give_the_stock_models_answer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stock(family)
    monkeypatch.setattr(base, "PIECE", 7)
    assert difference(model, batch(model)) <= tolerance(family)


def test_nothing_between_the_layers_of_a_feed_forward_has_more_rows_than_a_piece() -> None:
    seen: list[int] = []
    rows = torch.arange(2 * base.PIECE + 1.0)[:, None]

    def doubled(piece: Tensor) -> Tensor:
        seen.append(len(piece))
        return 2 * piece

    with torch.no_grad():
        assert (base.by_pieces(doubled, rows) == 2 * rows).all()
    assert max(seen) <= base.PIECE
    base.by_pieces(doubled, rows)
    assert seen[-1] == len(rows), "gradients keep it all anyway"


@pytest.mark.parametrize("family", FAMILIES)
def test_in_fp32_we_differ_no_more_than_stock_differs_from_itself(family: str) -> None:
    model = stock(family, dtype=torch.float32)
    rows = batch(model)
    with torch.no_grad():
        together = model(**rows).logits
        alone = torch.cat(
            [model(**{k: v[i : i + 1, :n] for k, v in rows.items()}).logits for i, n in enumerate(LENGTHS)]
        )
    itself = float((together - alone).abs().max())
    assert difference(model, rows) <= 2 * itself + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_in_mixed_precision(family: str) -> None:
    model = stock(family, dtype=torch.float32)
    rows = batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        answers = every_exit(with_exits(model), rows)
    answers.float().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("halted", [False, True])
def test_both_ways_to_attend_agree(window: int | None, halted: bool) -> None:
    model = stock("bert")
    _, now = stream.pack(batch(model, (4, 4, 9, 9, 12)))
    now = now.carrying(torch.randn(now.tokens, 8, dtype=torch.float64))
    if halted:
        kept = torch.arange(now.tokens) % 3 != 1
        asking = tuple(int(part.sum()) for part in kept.split(now.lengths))
        now = now.having(active=kept.nonzero().squeeze(1), asking=asking)
    asked = now.tokens if now.active is None else len(now.active)
    q, k, v = (torch.randn(n, 2, 4, dtype=torch.float64) for n in (asked, now.tokens, now.tokens))
    by_runs = attention.by_runs(q, k, v, now, window=window)
    assert (by_runs - attention.padded(q, k, v, now, window=window)).abs().max() <= 1e-12


def test_an_unknown_family_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown model type 'gpt2'.*bert.*distilbert.*roberta"):
        installed().encoder("gpt2")


def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.by_runs
    monkeypatch.setattr(attention, "by_runs", lambda q, *a, **k: right(q, *a, **{**k, "scale": 0.3}))


def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.by_runs
    monkeypatch.setattr(attention, "by_runs", lambda q, k, v, *a, **kw: right(k, q, v, *a, **kw))


def shifted_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    right = stream.pack

    def pack(rows):
        tokens, now = right(rows)
        shifted = stream.Tokens(tokens.ids, tokens.types, tokens.position + 1)
        return shifted, now.having(position=now.position.flip(0))

    monkeypatch.setattr("exitkit.engine.loop.pack", pack)


def leaking(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention._runs

    def runs(asking, lengths):
        first, *rest = right(asking, lengths)
        if len(rest) == 0:
            return (first,)
        second = rest[0]
        return (
            (1, first[0] * first[1] + second[0] * second[1], first[0] * first[2] + second[0] * second[2]),
            *rest[1:],
        )

    monkeypatch.setattr(attention, "_runs", runs)


def window_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.by_runs

    def by_runs(*a, window=None, **k):
        return right(*a, window=None if window is None else window + 1, **k)

    monkeypatch.setattr(attention, "by_runs", by_runs)


def no_padding_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bert.BertEncoder.embed

    def embed(self, tokens):
        return right(self, stream.Tokens(tokens.ids, tokens.types, tokens.position - 1))

    monkeypatch.setattr(bert.BertEncoder, "embed", embed)


def wrong_rotary_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    right = modernbert.ModernBertEncoder.layer

    def layer(self, index, now):
        return right(self, index, now.having(position=now.position * 2))

    monkeypatch.setattr(modernbert.ModernBertEncoder, "layer", layer)


def another_group(monkeypatch: pytest.MonkeyPatch) -> None:
    right = albert.AlbertEncoder.blocks
    monkeypatch.setattr(albert.AlbertEncoder, "blocks", property(lambda self: right.fget(self)[::-1]))


def one_block_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    right = albert.AlbertEncoder.blocks_of
    monkeypatch.setattr(albert.AlbertEncoder, "blocks_of", lambda self, index: right(self, index)[:1])


def no_padding_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoder in (padded.DebertaEncoder, padded.MPNetEncoder):
        right = encoder.padded_layer
        monkeypatch.setattr(encoder, "padded_layer", lambda self, i, h, real, right=right: right(self, i, h, None))


def padding_that_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    right = padded.DebertaEncoder.padded_layer

    def layer(self, index, hidden, real):
        return right(self, index, torch.where(real[:, :, None], hidden, hidden[:, :1]), real)

    monkeypatch.setattr(padded.DebertaEncoder, "padded_layer", layer)


def wrong_relative_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    right = modeling_deberta_v2.build_relative_position
    monkeypatch.setattr(modeling_deberta_v2, "build_relative_position", lambda *a, **k: right(*a, **k) + 1)


def no_position_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        modeling_mpnet.MPNetEncoder,
        "relative_position_bucket",
        staticmethod(lambda place, **k: torch.zeros_like(place)),
    )


def shorter_sequences_first(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bilstm.steps
    monkeypatch.setattr(bilstm, "_order", bilstm._order.__wrapped__)  # so that nothing wrong is remembered
    monkeypatch.setattr(bilstm, "steps", lambda place, rank, count: right(place, count - 1 - rank, count))


BUGS: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("bert", wrong_scale),
    ("bert", swapped),
    ("bert", shifted_positions),
    ("bert", leaking),
    ("roberta", no_padding_offset),
    ("distilbert", leaking),
    ("modernbert", shifted_positions),
    ("modernbert", window_off_by_one),
    ("modernbert", wrong_rotary_angles),
    ("modernbert", leaking),
    ("albert", leaking),
    ("albert with two groups of two", another_group),
    ("albert with two groups of two", one_block_of_the_group),
    ("deberta", no_padding_mask),
    ("deberta-v2 with a convolution", padding_that_is_not_empty),
    ("deberta-v3", no_padding_mask),
    ("mpnet", no_padding_mask),
    ("bilstm", shorter_sequences_first),
]

OURS_ONLY: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("deberta-v3", wrong_relative_positions),
    ("mpnet", no_position_bias),
]
"""Bugs planted in what stock layers are given, so the stock answer must be computed before."""


@pytest.mark.parametrize(("family", "bug"), BUGS, ids=lambda part: getattr(part, "__name__", part))
def test_parity_catches_a_planted_bug(
    family: str, bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stock(family)
    rows = batch(model)
    assert difference(model, rows) <= tolerance(family)
    bug(monkeypatch)
    assert difference(model, rows) > 100 * tolerance(family)


@pytest.mark.parametrize(("family", "bug"), OURS_ONLY, ids=lambda part: getattr(part, "__name__", part))
def test_parity_catches_positions_that_stock_layers_are_given_wrongly(
    family: str, bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stock(family)
    rows = batch(model)
    with torch.no_grad():
        theirs = model(**rows).logits
        assert (every_exit(with_exits(model), rows)[-1] - theirs).abs().max() <= EXACT
        bug(monkeypatch)
        assert (every_exit(with_exits(model), rows)[-1] - theirs).abs().max() > 100 * EXACT
