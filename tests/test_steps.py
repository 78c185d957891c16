"""A layer of a family with attention is three steps, and two of them know nothing of a token's neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from families import FAMILIES, REGISTRY, batch, config, stock, with_exits
from torch import Tensor

from exitkit.engine.attention import attend
from exitkit.engine.encoders.base import AttentionEncoder, update_active
from exitkit.engine.encoders.bert import BertEncoder
from exitkit.engine.loop import every_exit
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Stream, pack
from exitkit.errors import PluginError

ATTENDING = [family for family in FAMILIES if issubclass(REGISTRY.encoder(config(family).model_type), AttentionEncoder)]
LENGTHS = (2, 9, 9, 31)


@dataclass(frozen=True)
class Some:
    """Rows that are no stream's: nobody could find a neighbour."""

    hidden: Tensor
    position: Tensor
    active: Tensor | None = None

    def at(self, rows: Tensor) -> Some:
        return Some(self.hidden[rows], self.position[rows])


def attending(family: str, dtype: torch.dtype = torch.float64) -> tuple[AttentionEncoder, Stream]:
    """An encoder, and a stream in front of its first layer."""
    encoder = with_exits(stock(family, dtype=dtype)).encoder
    assert isinstance(encoder, AttentionEncoder)
    tokens, stream = pack(batch(encoder.stock, LENGTHS))
    return encoder, stream.carrying(encoder.embed(tokens))


def halted(stream: Stream) -> Stream:
    """Every third token computes no more."""
    kept = torch.arange(stream.tokens) % 3 != 1
    asking = tuple(int(part.sum()) for part in kept.split(list(stream.lengths)))
    return stream.having(active=kept.nonzero().squeeze(1), asking=asking)


def near(family: str) -> float:
    """ModernBERT turns queries and keys in fp32 in every format."""
    return 1e-6 if family.startswith("modernbert") else 1e-12


def test_every_family_that_halts_words_is_one_of_three_steps() -> None:
    for family in FAMILIES:
        encoder = REGISTRY.encoder(config(family).model_type)
        assert encoder.words_halt == issubclass(encoder, AttentionEncoder)


@pytest.mark.parametrize("family", ATTENDING)
@torch.no_grad()
def test_project_and_finish_treat_rows_one_by_one(family: str) -> None:
    encoder, stream = attending(family)
    everyone = Some(stream.hidden, stream.position)
    mixed = torch.randperm(stream.tokens, generator=torch.Generator().manual_seed(0))
    for index in range(len(encoder.blocks)):
        for block in encoder.blocks_of(index):
            parts = encoder.project(block, everyone, everyone.hidden)
            context = torch.randn(stream.tokens, parts[0][0].numel(), dtype=torch.float64)
            new = encoder.finish(block, context, everyone.hidden)
            for rows in (mixed, *mixed[:5, None]):
                some = everyone.at(rows)
                found = *encoder.project(block, some, some.hidden), encoder.finish(block, context[rows], some.hidden)
                for mine, among_others in zip(found, (*parts, new), strict=True):
                    assert (mine - among_others[rows]).abs().max() <= near(family)


@pytest.mark.parametrize("family", ATTENDING)
@torch.no_grad()
def test_only_queries_depend_on_which_rows_compute(family: str) -> None:
    encoder, stream = attending(family)
    some = halted(stream)
    assert some.active is not None
    for block in encoder.blocks_of(0):
        query, key, value = encoder.project(block, stream, stream.hidden)
        asked, *read = encoder.project(block, some, stream.hidden[some.active])
        assert (asked - query[some.active]).abs().max() <= near(family)
        assert all(torch.equal(*pair) for pair in zip(read, (key, value), strict=True))


@pytest.mark.parametrize("family", ATTENDING)
@pytest.mark.parametrize("words_halt", [False, True])
@torch.no_grad()
def test_a_layer_is_its_three_steps(family: str, words_halt: bool) -> None:
    encoder, stream = attending(family, torch.float32)
    before = halted(stream) if words_halt else stream
    for index in range(len(encoder.blocks)):
        after = before
        for block in encoder.blocks_of(index):
            asking = after.hidden if after.active is None else after.hidden[after.active]
            context = encoder.attend(block, *encoder.project(block, after, asking), after)
            after = after.carrying(update_active(after, encoder.finish(block, context, asking)))
        assert torch.equal(encoder.layer(index, before), after.hidden)
        before = after


@pytest.mark.parametrize("family", ["bert", "electra with narrow embeddings", "distilbert"])
@torch.no_grad()
def test_distillation_is_told_what_a_layer_projects_of_all_tokens(family: str) -> None:
    encoder, stream = attending(family)
    query, key, value = encoder.project(encoder.blocks[1], stream, stream.hidden)
    for before in (stream, halted(stream)):
        told = encoder.attention_inputs(1, before)
        assert told is not None
        assert all(torch.equal(*pair) for pair in zip(told, (query, key, value), strict=True))


@pytest.mark.parametrize("family", ["albert", "modernbert"])
def test_distillation_is_told_nothing_where_no_student_can_be_cut(family: str) -> None:
    encoder, stream = attending(family)
    assert encoder.attention_inputs(0, stream) is None


class WritesItsLayer(BertEncoder):
    """As families did before layers had steps."""

    def layer(self, index: int, stream: Stream) -> Tensor:
        block = self.base.encoder.layer[index]
        one = block.attention.self
        asking = stream.hidden if stream.active is None else stream.hidden[stream.active]
        query, key, value = (
            part(rows).view(len(rows), one.num_attention_heads, -1)
            for part, rows in ((one.query, asking), (one.key, stream.hidden), (one.value, stream.hidden))
        )
        attended = block.attention.output(attend(query, key, value, stream), asking)
        return update_active(stream, block.output(block.intermediate(attended), attended))


def test_a_family_may_write_its_layer_instead() -> None:
    model = stock("bert")
    rows = batch(model)
    with torch.no_grad():
        own = every_exit(ExitModel(model, WritesItsLayer, [], "mean").eval(), rows)
        steps = every_exit(ExitModel(model, BertEncoder, [], "mean").eval(), rows)
    assert torch.equal(own[-1], steps[-1])


@pytest.mark.parametrize(
    ("step", "wrong", "message"),
    [
        ("project", lambda self, block, rows, asking: asking, r"project must give .*\[11, H, D\], \[11, H, D\]"),
        ("project", lambda self, block, rows, asking: (asking,) * 3, "project must give queries, keys and values"),
        ("attend", lambda self, block, query, key, value, stream: 1 / 0, "attend failed: ZeroDivisionError"),
        (
            "finish",
            lambda self, block, context, asking: context[:1],
            r"finish must give a tensor \[11, 32\], not \[1, ",
        ),
        ("blocks_of", lambda self, index: None, "blocks_of must give a list of modules"),
    ],
)
def test_a_step_that_breaks_the_contract_is_named(step: str, wrong: object, message: str) -> None:
    odd = type("Odd", (BertEncoder,), {step: wrong})
    model = stock("bert")
    with pytest.raises(PluginError, match=rf"family '.*Odd' breaks its contract: {message}"):
        every_exit(ExitModel(model, odd, [1], "mean").double(), batch(model, (4, 7)))
