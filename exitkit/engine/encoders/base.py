"""What the loop needs from a family of encoders, and how one is found for a model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from exitkit.containment import Complaint, contain
from exitkit.engine.stream import Stream, Tokens


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Multiply-adds of one layer."""

    key: int  # per token that serves as key and value, or is read in another way
    query: int  # per active token: query, attention output, feed-forward
    pair: int  # per (query, key) pair: score and weighted sum, all heads


PIECE = 1024
"""Rows of a feed-forward that are computed at once on a CPU."""

Axis = Literal["hidden", "heads", "inner"]
"""What is counted along an axis of a weight: features of a token's state, features of attention heads (H · D, head by
head), units of the feed-forward."""


@dataclass(frozen=True)
class Part:
    """A module whose weight a smaller model can take pieces of; None = nothing is cut along that axis."""

    module: nn.Module
    rows: Axis | None = None  # first axis of the weight, and of the bias
    columns: Axis | None = None  # second axis of the weight


@dataclass(frozen=True)
class Anatomy:
    """Every module with weights of a stock model, by what its axes count."""

    blocks: tuple[tuple[Part, ...], ...]  # layer by layer
    rest: tuple[Part, ...]  # embeddings and the stock head


class Encoder(ABC):
    """One block shape run over a packed stream. It borrows a stock transformers model's weights and owns no others.

    Training and inference run the same code. Families whose layers attend are `AttentionEncoder`s and write the steps
    of a layer; others write `layer`.

    Args:
        stock: a `...ForSequenceClassification` or `...ForTokenClassification` of one of `model_types`.
    """

    model_types: ClassVar[frozenset[str]]
    native: ClassVar[bool] = True
    """Whether layers run on the packed stream; else stock ones do, on padded batches."""
    words_halt: ClassVar[bool] = True
    """Whether a layer can compute some words only, while the others are still read; usually where it is `native`."""
    cuts: ClassVar[bool] = False
    """Whether `anatomy`, `attention_inputs` and `resized` are there: smaller models can be cut out and taught."""
    inner_name: ClassVar[str] = "intermediate_size"
    """What the config calls the units of the feed-forward."""

    def __init_subclass__(cls, **more: Any) -> None:
        """Stock layers compute all words of a batch, so words halt only where a family that runs them says they can.

        Whatever goes wrong in a plugin's family is an error that names it.
        """
        super().__init_subclass__(**more)
        contain(cls, "family", Encoder, _COMPLAINTS)
        if "native" in cls.__dict__ and "words_halt" not in cls.__dict__:
            cls.words_halt = cls.native

    def __init__(self, stock: PreTrainedModel) -> None:
        self.stock = stock
        self.base = stock.base_model
        self.tags_words = type(stock).__name__.endswith("ForTokenClassification")

    @classmethod
    def refusal(cls, config: PreTrainedConfig) -> str | None:
        """Why models of such a config are not computed here as their stock class computes them; None: they are.

        A sentence that says what is in the config and what to do. A family that overrides it asks this one too, unless
        its layers keep words from looking ahead.
        """
        if not getattr(config, "is_decoder", False):
            return None
        return (
            "its config says is_decoder: true, so that no word sees those after it, and here every word sees all. "
            "Only where the model was trained to see all of them, set is_decoder to false in config.json."
        )

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The stock layers from the bottom up."""

    @property
    def width(self) -> int:
        """d, the size of a token's state."""
        return int(self.stock.config.hidden_size)

    @abstractmethod
    def embed(self, tokens: Tokens) -> Tensor:
        """The states that the first layer reads: [T, d]."""

    @abstractmethod
    def layer(self, index: int, stream: Stream) -> Tensor:
        """States after layer `index` (from 0): [T, d]. Rows of tokens that are not active come back unchanged."""

    def finished(self, stream: Stream) -> Stream:
        """The stream as an exit head may read it: behind the final norm in pre-norm families, else as it is."""
        return stream

    def pooled(self, stream: Stream, units: Tensor | None = None) -> Tensor:
        """What the stock head reads of the units in rows `units` [n] (None = all) of finished states: [n, d].

        Usually that of the unit's first token: [CLS], or a word's first piece.
        """
        return first_tokens(stream, units)

    @abstractmethod
    def stock_head(self, pooled: Tensor) -> Tensor:
        """Logits [n, C] of the stock model's own head on pooled states [n, d]."""

    @abstractmethod
    def stock_head_modules(self) -> list[nn.Module]:
        """The modules that `stock_head` runs."""

    @abstractmethod
    def layer_cost(self, index: int) -> LayerCost:
        """What layer `index` (from 0) costs."""

    def anatomy(self) -> Anatomy:
        """The weights by what their axes count; only where `cuts`."""
        raise TypeError(f"{type(self).__name__} cuts nothing: it does not tell what its weights are")

    def attention_inputs(self, index: int, stream: Stream) -> tuple[Tensor, Tensor, Tensor] | None:
        """Queries, keys and values of layer `index` (from 0), each [T, H, D]; None in families that do not tell."""
        return None

    def resized(self, layers: int, width: int, heads: int, inner: int) -> PreTrainedConfig:
        """The config of a model like this one in another size; only where `cuts`."""
        config = copy.deepcopy(self.stock.config)
        config.num_hidden_layers, config.hidden_size, config.num_attention_heads = layers, width, heads
        setattr(config, self.inner_name, inner)
        return config

    def stock_head_cost(self) -> int:
        """Multiply-adds of the stock head per unit."""
        return sum(linear_cost(module) for module in self.stock_head_modules())


def must_be(shape: Callable[..., tuple[int, ...]]) -> Complaint:
    """The complaint of a method that gives anything but a tensor of `shape(encoder, its arguments)`."""

    def complaint(encoder: Encoder, found: object, *args: Any, **more: Any) -> str | None:
        wanted = shape(encoder, *args, **more)
        if isinstance(found, Tensor) and tuple(found.shape) == wanted:
            return None
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        return f"must give a tensor {list(wanted)}, not {got}"

    return complaint


def _no_modules(encoder: Encoder, found: object, *args: object) -> str | None:
    fits = isinstance(found, list) and found and all(isinstance(one, nn.Module) for one in found)
    return None if fits else "must give a list of modules"


def _no_cost(encoder: Encoder, found: object, *args: object) -> str | None:
    fits = isinstance(found, LayerCost) and all(
        isinstance(count, int) and count >= 0 for count in (found.key, found.query, found.pair)
    )
    return None if fits else f"must give a LayerCost of whole numbers, not {found!r}"


_COMPLAINTS: Mapping[str, Complaint | None] = {
    "__init__": None,
    "blocks": _no_modules,
    "width": None,
    "embed": must_be(lambda encoder, tokens: (len(tokens.ids), encoder.width)),
    "layer": must_be(lambda encoder, index, stream: (stream.tokens, encoder.width)),
    "finished": lambda _, found, *args: None if isinstance(found, Stream) else "must give a stream",
    "pooled": must_be(
        lambda encoder, stream, units=None: (stream.units if units is None else len(units), encoder.width)
    ),
    "stock_head": must_be(lambda encoder, pooled: (len(pooled), int(encoder.stock.config.num_labels))),
    "stock_head_modules": _no_modules,
    "layer_cost": _no_cost,
    "anatomy": None,
    "attention_inputs": None,
    "resized": None,
    "stock_head_cost": None,
}


class Rows(Protocol):
    """What a stream says of each token by itself: all that a step may ask that treats rows one by one."""

    @property
    def hidden(self) -> Tensor:
        """[T, d] states."""

    @property
    def position(self) -> Tensor:
        """[T] place of each token in its own sequence, from 0."""

    @property
    def active(self) -> Tensor | None:
        """[Q] ascending rows of the tokens that compute; None = all of them."""


class AttentionEncoder(Encoder):
    """Encoders whose layers are three steps: `project`, `attend`, `finish`.

    The first and the last treat rows one by one, mostly with the stock modules themselves, so that how they are
    computed can be exchanged for whole streams, halted words and gated parts alike. The middle one is exitkit's,
    because stock attention takes queries and keys from the same tensor.
    """

    def __init_subclass__(cls, **more: Any) -> None:
        """As in every family."""
        super().__init_subclass__(**more)
        contain(cls, "family", AttentionEncoder, _COMPLAINTS_OF_STEPS)

    def layer(self, index: int, stream: Stream) -> Tensor:  # noqa: D102
        for block in self.blocks_of(index):
            asking = active_states(stream)
            context = self.attend(block, *self.project(block, stream, asking), stream)
            stream = stream.carrying(update_active(stream, self.finish(block, context, asking)))
        return stream.hidden

    def blocks_of(self, index: int) -> list[nn.Module]:
        """The stock blocks that layer `index` (from 0) runs one after the other; nearly always one."""
        return [self.blocks[index]]

    @abstractmethod
    def project(self, block: Any, rows: Rows, asking: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [Q, H, D] of the rows that compute, whose states are `asking` [Q, d]; keys and values [T, H, D]."""

    @abstractmethod
    def attend(self, block: Any, query: Tensor, key: Tensor, value: Tensor, stream: Stream) -> Tensor:
        """`exitkit.engine.attention.attend` with the block's window, dropout and scale: [Q, H · D]."""

    @abstractmethod
    def finish(self, block: Any, context: Tensor, asking: Tensor) -> Tensor:
        """New states [Q, d] from what rows found [Q, H · D] and their states before [Q, d]."""

    def attention_inputs(self, index: int, stream: Stream) -> tuple[Tensor, Tensor, Tensor] | None:
        """None where nothing is cut, else what `project` makes of all tokens."""
        if not self.cuts:
            return None
        [block] = self.blocks_of(index)
        return self.project(block, stream.having(active=None, asking=stream.lengths), stream.hidden)


def _no_projection(encoder: Encoder, found: object, block: Any, rows: Rows, asking: Tensor) -> str | None:
    wanted = [len(asking), len(rows.hidden), len(rows.hidden)]
    parts = found if isinstance(found, tuple) else ()
    if [len(part) for part in parts if isinstance(part, Tensor) and part.dim() == 3] == wanted:
        return None
    return f"must give queries, keys and values: tensors {', '.join(f'[{count}, H, D]' for count in wanted)}"


_COMPLAINTS_OF_STEPS: Mapping[str, Complaint | None] = {
    "blocks_of": _no_modules,
    "project": _no_projection,
    "attend": None,
    "finish": must_be(lambda encoder, block, context, asking: (len(asking), encoder.width)),
}


def linear_cost(module: nn.Module) -> int:
    """Multiply-adds of all linear layers inside a module, for one row."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def embedded(embeddings: nn.Module, tokens: Tokens, position: Tensor) -> Tensor:
    """[T, d] what stock embeddings with token types make of tokens at positions [T], as these embeddings count them."""
    types = None if tokens.types is None else tokens.types[None]
    hidden: Tensor = embeddings(input_ids=tokens.ids[None], token_type_ids=types, position_ids=position[None])[0]
    return hidden


def split_heads(states: Tensor, heads: int) -> Tensor:
    """[T, H * D] as [T, H, D]."""
    return states.view(*states.shape[:-1], heads, -1)


def update_active(stream: Stream, new: Tensor) -> Tensor:
    """The states of all tokens [T, d] after the active ones received `new` [Q, d]."""
    if stream.active is None:
        return new
    return stream.hidden.index_copy(0, stream.active, new.to(stream.hidden.dtype))


def active_states(stream: Stream) -> Tensor:
    """[Q, d] states of the tokens that compute."""
    return stream.hidden if stream.active is None else stream.hidden.index_select(0, stream.active)


def by_pieces(feed_forward: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """feed_forward(states) [Q, d] of what treats rows [Q, d] one by one, without its tens of megabytes in between.

    The C library hands memory of that size back to the system and fetches it anew for every layer, page by page, which
    took up to a tenth of the time. Only on a CPU without gradients, which keep what is in between anyway.
    """
    if states.shape[0] <= PIECE or states.device.type != "cpu" or torch.is_grad_enabled():
        return feed_forward(states)
    pieces = states.tensor_split(-(-states.shape[0] // PIECE))
    return torch.cat([feed_forward(piece) for piece in pieces])


def counted_positions(tokens: Tokens, padding: int) -> Tensor:
    """[T] positions as RoBERTa and its kin count them: from `padding` + 1 on, over tokens that are not the padding one.

    A text may hold that token too, written out: it then stands at position `padding`, and those behind it move up.
    """
    written = tokens.ids == padding
    if written.device.type == "cpu" and not written.any():  # nearly always, and a tenth of the work; a GPU would wait
        return tokens.position + (padding + 1)
    counts = (~written).long()
    before = counts.cumsum(0) - counts  # [T] of all sequences
    first = torch.arange(len(counts), device=counts.device) - tokens.position  # [T] row of the sequence's first token
    return counts * (before - before[first] + 1) + padding


def first_tokens(stream: Stream, units: Tensor | None = None) -> Tensor:
    """[n, d] states of the tokens that speak for the units in rows `units` [n]; None = all."""
    return stream.hidden.index_select(0, stream.anchor if units is None else stream.anchor.index_select(0, units))


def mean_of_tokens(stream: Stream) -> Tensor:
    """[S, d] mean of the states of every sequence."""
    hidden, lengths = stream.hidden, stream.lengths
    if lengths[0] == lengths[-1]:  # in order of length, so they are all alike; several times faster for one row
        return hidden.view(len(lengths), lengths[0], -1).mean(dim=1)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return nn.functional.embedding_bag(rows, hidden, stream.bounds[:-1], mode="mean")


def mean_of_pieces(stream: Stream) -> Tensor:
    """[U, d] mean of the states of every word's tokens."""
    assert stream.owner is not None
    owned = (stream.owner >= 0).nonzero().squeeze(1)
    owner = stream.owner[owned]
    sums = stream.hidden.new_zeros(stream.units, stream.hidden.shape[1]).index_add(0, owner, stream.hidden[owned])
    counts = torch.bincount(owner, minlength=stream.units)
    return sums / counts[:, None].to(sums.dtype)
