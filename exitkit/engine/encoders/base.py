"""What the loop needs from a family of encoders, and how one is found for a model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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

    Position-wise parts are the stock modules themselves. Attention is exitkit's, because stock attention takes queries
    and keys from the same tensor. Training and inference run the same code.

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


def must_be_rows(of: Callable[..., int]) -> Complaint:
    """The complaint of a method that gives anything but `of(its arguments)` states of the family's width."""

    def complaint(encoder: Encoder, found: object, *args: Any, **more: Any) -> str | None:
        wanted = (of(*args, **more), encoder.width)
        if isinstance(found, Tensor) and tuple(found.shape) == wanted:
            return None
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        return f"must give a tensor {list(wanted)}, not {got}"

    return complaint


def _no_logits(encoder: Encoder, found: object, pooled: Tensor) -> str | None:
    wanted = [pooled.shape[0], int(encoder.stock.config.num_labels)]
    if isinstance(found, Tensor) and list(found.shape) == wanted:
        return None
    got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    return f"must give a tensor {wanted}, not {got}"


def _no_modules(encoder: Encoder, found: object) -> str | None:
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
    "embed": must_be_rows(lambda tokens: len(tokens.ids)),
    "layer": must_be_rows(lambda index, stream: stream.tokens),
    "finished": lambda _, found, *args: None if isinstance(found, Stream) else "must give a stream",
    "pooled": must_be_rows(lambda stream, units=None: stream.units if units is None else len(units)),
    "stock_head": _no_logits,
    "stock_head_modules": _no_modules,
    "layer_cost": _no_cost,
    "anatomy": None,
    "attention_inputs": None,
    "resized": None,
    "stock_head_cost": None,
}


def linear_cost(module: nn.Module) -> int:
    """Multiply-adds of all linear layers inside a module, for one row."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


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
