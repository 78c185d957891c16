"""Whether a family's own arithmetic gives what the stock model gives: the promise that plain transformers agree."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from exitkit import containment
from exitkit.artifacts.pretrained import new_stock
from exitkit.engine.encoders.base import Encoder
from exitkit.engine.loop import Passed, full_pass
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Batch, Stream, pack, packing_order
from exitkit.errors import PluginError

LENGTHS = (12, 7, 20, 5, 31)
"""Tokens of the rows that families are tested with."""

EXACT = 1e-9
"""What may be rounding in float64."""

BRIEF = (9, 3, 17)
"""Tokens of the rows that are tried before a training."""

ROUNDING = 1e-4
"""Of the largest state or logit: what may be rounding in fp32 besides what stock models differ by themselves. With
fresh weights right families differ by 3e-7 of it at most, one without its window by 2e-3, without positions by 0.8."""


class Said(NamedTuple):
    """What a model makes of some rows."""

    states: Tensor  # [T, d] behind the last layer and the final norm, row by row, without padding
    logits: Tensor  # [B, C], of taggers those of the first tokens


def check(model: ExitModel) -> None:
    """Raise PluginError where a family differs from its stock model; it is asked before anything is trained.

    A few short rows of random tokens go through both, with the model's own weights. Layers with a local window get a
    longer row. Weights and torch's random numbers stay as they are.
    """
    rows = random_rows(model.stock, lengths(model.stock.config, BRIEF))
    with torch.no_grad(), _without_dropout(model.stock):
        stock, ours = stock_says(model.stock, rows), we_say(model, rows)
        if _differ(stock, ours, (0.0, 0.0)) is None:
            return
        singly = [stock_says(model.stock, row) for row in alone(rows)]
    itself = tuple(
        largest(torch.cat(parts), whole) for parts, whole in zip(zip(*singly, strict=True), stock, strict=True)
    )
    wrong = _differ(stock, ours, itself)
    if wrong is not None:
        raise PluginError(
            f"{containment.called('family', type(model.encoder))} differs from the stock model "
            f"{type(model.stock).__name__}: {wrong} may be rounding. What is trained so would answer otherwise in "
            "plain transformers; its author finds more with exitkit.testing.check_family."
        )


def _differ(stock: Said, ours: Said, itself: Sequence[float]) -> str | None:
    """What differs by more than rounding, where stock differs from `itself`, padded from alone, by so much."""
    for what, mine, theirs, noise in zip(("states", "logits"), ours, stock, itself, strict=True):
        found, allowed = largest(mine, theirs), 10 * noise + ROUNDING * float(theirs.abs().max())
        if not found <= allowed:
            return f"{what} behind the last layer by {found:.2g}, where {allowed:.2g}"
    return None


def largest(one: Tensor, other: Tensor) -> float:
    """The largest difference; NaN where one has it."""
    return float((one - other).abs().max())


def lengths(config: PreTrainedConfig, usual: Sequence[int]) -> tuple[int, ...]:
    """Tokens of rows to try: usual ones, and where layers have a local window, one that does not fit into it."""
    windows = [getattr(config, name, None) for name in ("local_attention", "sliding_window")]
    beyond = [2 * window + 1 for window in windows if window and 2 * window + 1 > max(usual)]
    positions = getattr(config, "max_position_embeddings", None) or 512
    longest = max(3, positions - (config.pad_token_id or 0) - 1)
    return tuple(min(length, longest) for length in (*usual, *beyond[:1]))


def random_rows(stock: PreTrainedModel, lengths: Sequence[int], seed: int = 0) -> Batch:
    """Random token ids of these lengths, and types where there are any, padded as the family pads."""
    random = torch.Generator().manual_seed(seed)
    config, vocabulary = stock.config, len(stock.get_input_embeddings().weight)
    padding = config.pad_token_id or 0
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, vocabulary, mask.shape, generator=random)
    ids = torch.where(ids == padding, ids - 1 if padding > 1 else ids + 1, ids)  # in some families padding has no place
    rows = {"input_ids": torch.where(mask.bool(), ids.clamp(max=vocabulary - 1), padding), "attention_mask": mask}
    if (getattr(config, "type_vocab_size", None) or 0) > 1:
        rows["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=random) * mask
    return {name: value.to(stock.device) for name, value in rows.items()}


def alone(rows: Batch) -> Iterator[Batch]:
    """Each row by itself, without padding."""
    for number, length in enumerate(rows["attention_mask"].sum(dim=1).tolist()):
        yield {name: value[number : number + 1, :length] for name, value in rows.items()}


def stock_says(stock: PreTrainedModel, rows: Batch) -> Said:
    """What the stock model makes of padded rows."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0])

    handle = stock.base_model.register_forward_hook(keep)
    try:
        logits = stock(**rows).logits
    finally:
        handle.remove()
    return Said(kept[0][rows["attention_mask"].bool()], logits[:, 0] if logits.dim() == 3 else logits)


def we_say(model: ExitModel, rows: Batch) -> Said:
    """What the last exit makes of the same rows."""
    kept: list[Stream] = []

    def keep(index: int, before: Stream, after: Stream) -> Stream | Passed:
        if index == model.shape.layers - 1:
            kept.append(model.encoder.finished(after))
        return after

    if model.encoder.tags_words:
        words = torch.full_like(rows["input_ids"], -1)
        words[:, 0] = 0
        rows = {**rows, "words": words}
    logits = full_pass(model, rows, between=keep).logits[-1]
    counts = rows["attention_mask"].sum(dim=1).tolist()
    order = packing_order(counts)
    packed = dict(zip(order, torch.split(kept[0].hidden, list(kept[0].lengths)), strict=True))
    return Said(torch.cat([packed[row] for row in range(len(counts))]), logits)


@contextmanager
def _without_dropout(stock: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode, and afterwards as before, module by module."""
    training = [module for module in stock.modules() if module.training]
    stock.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def random_stock(
    config: PreTrainedConfig, tags: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """A stock classifier, or tagger, with weights N(0, 0.3²), in evaluation mode.

    Weights as they are initialised are so small that attention hardly matters.
    """
    config = copy.deepcopy(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_stock("tagging" if tags else "classification", config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
    return model.to(dtype).eval()


def small_config(model_type: str) -> PreTrainedConfig:
    """A tiny config of a model type, whose names are BERT's. Families with other names need one given."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return AutoConfig.for_model(
        model_type, vocab_size=60, max_position_embeddings=64, num_labels=3, pad_token_id=1, **sizes, **silent
    )


def check_family(
    family: type[Encoder], config: PreTrainedConfig | None = None, name: str | None = None, tolerance: float = EXACT
) -> None:
    """Test that a family gives what the stock model gives, in float64, with weights N(0, 0.3²), on rows of all lengths.

    Args:
        family: the class.
        config: of a tiny model; None = one of BERT's names for every model type of the family. One with a local window
            is tested with a row that does not fit into it.
        name: what it is called in messages.
        tolerance: above what is rounding, for stock models that compute in fp32 whatever their weights.

    Raises:
        AssertionError: a rule is broken; the message says which.
    """
    for given in [config] if config is not None else [small_config(one) for one in sorted(family.model_types)]:
        for tags in (False, True):
            what = f"{name or given.model_type}{', tagging' if tags else ''}"
            model = _exact(family, random_stock(given, tags))
            rows = random_rows(model.stock, lengths(given, LENGTHS))
            _check_answers(model, rows, what, tolerance)
            _check_gradients(model, rows, what, tolerance)
            if tags and family.words_halt:
                _check_halting(model, rows, what, tolerance)
        _check_costs(model, what)


def _exact(family: type[Encoder], stock: PreTrainedModel) -> ExitModel:
    """A stock model with its last exit only, in its own dtype."""
    layers = len(family(stock).blocks)
    return ExitModel(stock, family, [layers], "cls").to(stock.dtype).eval()


@torch.no_grad()
def _check_answers(model: ExitModel, rows: Batch, what: str, tolerance: float) -> None:
    """States and logits are stock's, and a row's do not depend on padding and the other rows."""
    stock, ours = stock_says(model.stock, rows), we_say(model, rows)
    singly = [we_say(model, row) for row in alone(rows)]
    for part, (mine, theirs, single) in zip(
        ("states behind the last layer", "logits"),
        zip(ours, stock, map(torch.cat, zip(*singly, strict=True)), strict=True),
        strict=True,
    ):
        assert mine.shape == theirs.shape, (
            f"{what}: {part} are {list(mine.shape)}, the stock model's {list(theirs.shape)}"
        )
        found = largest(mine, theirs)
        assert found <= tolerance, f"{what}: {part} differ from the stock model's by {found:.2g}"
        found = largest(mine, single)
        assert found <= tolerance, f"{what}: {part} of a row depend on the other rows, by {found:.2g}"


def _check_gradients(model: ExitModel, rows: Batch, what: str, tolerance: float) -> None:
    """Every weight of the stock model learns what it would learn there."""
    torch.autograd.backward(stock_says(model.stock, rows).logits.sum())
    theirs = {name: p.grad.clone() for name, p in model.stock.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.autograd.backward(we_say(model, rows).logits.sum())
    for name, parameter in model.stock.named_parameters():
        if name in theirs:
            assert parameter.grad is not None, f"{what}: weight {name} gets no gradient"
            found = largest(parameter.grad, theirs[name]) / (1 + float(theirs[name].abs().max()))
            assert found <= tolerance, f"{what}: the gradient of weight {name} differs by {found:.2g}"
    model.zero_grad()


@torch.no_grad()
def _check_halting(model: ExitModel, rows: Batch, what: str, tolerance: float) -> None:
    """A layer gives active tokens what it would give them if all were, and leaves the others as they are."""
    tokens, stream = pack(rows)
    stream = stream.carrying(model.encoder.embed(tokens))
    kept = torch.arange(stream.tokens) % 3 != 1
    asking = tuple(int(part.sum()) for part in torch.split(kept, list(stream.lengths)))
    some = stream.having(active=kept.nonzero().squeeze(1), asking=asking)
    for index in range(model.shape.layers):
        whole, part = model.encoder.layer(index, stream), model.encoder.layer(index, some)
        assert torch.equal(part[~kept], stream.hidden[~kept]), f"{what}: layer {index + 1} changes words that halted"
        if model.encoder.layer_cost(index).pair > 2 * model.shape.width:
            continue  # a layer of several attentions, which reads halted words as they were before it
        found = largest(part[kept], whole[kept])
        assert found <= tolerance, (
            f"{what}: layer {index + 1} computes words otherwise when others halt, by {found:.2g}"
        )


def _check_costs(model: ExitModel, what: str) -> None:
    """Work is counted: a layer costs something, and the stock head's modules are parts of the stock model."""
    for index in range(model.shape.layers):
        cost = model.encoder.layer_cost(index)
        assert cost.key + cost.query > 0, f"{what}: layer {index + 1} costs nothing"
    parts = {id(module) for module in model.stock.modules()}
    for module in model.encoder.stock_head_modules():
        assert id(module) in parts, f"{what}: {type(module).__name__} of the stock head is not the stock model's own"
