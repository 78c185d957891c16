"""From rows to token ids, and from token ids to padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from exitkit.data.sources import Rows
from exitkit.errors import UsageError
from exitkit.tasks.tags import LEFT_OUT

# Types that hold a million encoded rows in little memory; padding makes them all int64.
TOKEN_TYPES = {"input_ids": pa.int32(), "token_type_ids": pa.int8(), "attention_mask": pa.int8()}
NO_LABEL = -100  # fills up rows of labels of words
STANDS_IN = ("unk_token_id", "cls_token_id", "bos_token_id", "sep_token_id", "eos_token_id", "pad_token_id")
"""Which token is read where a row has none: the first of these that there is."""

# What `limit` answers where neither tokenizer nor model knows an end (relative positions, as in XLNet).
NO_END = 512

# Families whose positions count from pad_token_id + 1, so that the table of positions has that many idle
# rows. transformers says so only inside each family's modelling code.
# fmt: off
OFFSET_POSITIONS = frozenset({
    "bridgetower_text_model", "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt",
    "longformer", "luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
})
# fmt: on


@dataclass(frozen=True)
class Reader:
    """How a model reads a row."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int


def limit(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, asked: int | None = None) -> int:
    """The greatest number of tokens per row, special ones included: `asked`, or all that the model can take.

    Raises UsageError: `asked` is more than the model can take, or leaves no room for a token of text.
    """
    positions = _positions(config)
    known = int(tokenizer.model_max_length) if tokenizer.model_max_length < 1e9 else None  # 1e30 stands for unknown
    if asked is None:
        return min((end for end in (positions, known) if end is not None), default=NO_END)
    highest = positions if positions is not None else known
    if highest is not None and asked > highest:
        raise UsageError(f"--max-length is {asked}, but the model takes at most {highest} tokens. Ask for less.")
    special = int(tokenizer.num_special_tokens_to_add(pair=False))
    if asked <= special:
        raise UsageError(
            f"--max-length is {asked}, of which {special} are special tokens. Ask for {special + 1} or more."
        )
    return asked


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int, tagging: bool = False) -> Dataset:
    """Tokenise: columns input_ids, attention_mask, token_type_ids if the tokenizer gives them, labels if
    there are, and for tagging `words`: the word each token belongs to, −1 for none.

    Longer rows are cut, pairs at the longer text; nothing is padded. An empty text is only special tokens, and where a
    tokenizer adds none, one token (see `with_tokens`). Labels of words are those of the words that have a token. The
    tokens of words that are left out belong to no word: they are read, but nothing is asked of them. Texts that are not
    given in words are split by the tokenizer.

    Raises UsageError: tagging with a tokenizer that does not tell which word a token belongs to.
    """
    if tagging and not tokenizer.is_fast:
        raise UsageError("tagging needs a fast tokenizer (tokenizer.json), which says which word a token belongs to.")
    tables = [_encode(batch, tokenizer, max_length, tagging) for batch in rows.data.iter(1000)]
    return Dataset(pa.concat_tables(tables))


def batches(encoded: Dataset, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[dict[str, Tensor]]:
    """Consecutive rows, `size` at a time, in order: [B, L] int64 tensors padded on the right to the longest,
    and labels [B].

    Raises UsageError: `size` is below 1, or the tokenizer has no padding token.
    """
    if size < 1:
        raise UsageError(f"--batch-size is {size}; it must be 1 or more.")
    check_padding(tokenizer)
    for start in range(0, len(encoded), size):
        yield padded(encoded[start : start + size], tokenizer)


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError for a tokenizer without a padding token."""
    if tokenizer.pad_token_id is None:
        raise UsageError("the tokenizer has no padding token. Set tokenizer.pad_token and save it with the model.")


def padded(columns: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Encoded rows as one batch: [B, L] tensors padded on the right, labels [B] or, of words, [B, W].

    Not the tokenizer's own padding: it may be set to pad on the left.
    """
    fill = {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "attention_mask": 0,
        "words": -1,
    }
    if "words" in columns:
        fill["labels"] = NO_LABEL
    return {name: _tensor(values, fill.get(name)) for name, values in columns.items()}


def collator(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]:
    """What makes a batch of a list of encoded rows, as transformers.Trainer asks for it."""
    check_padding(tokenizer)
    return lambda rows: padded({name: [row[name] for row in rows] for name in rows[0]}, tokenizer)


def _tensor(values: Sequence[Any], fill: int | None) -> Tensor:
    """[B], or [B, L] where rows are lists to be filled up with `fill`."""
    if fill is None:
        return torch.tensor(values)
    rows = [torch.tensor(value, dtype=torch.long) for value in values]
    return pad_sequence(rows, batch_first=True, padding_value=fill)


def with_tokens(columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give rows that have no token one of STANDS_IN, as a token of no word. Changes the columns' rows in place.

    Tokenizers without special tokens make nothing of an empty text, or of words that they do not know. Such a row would
    have no state that an exit could read.
    """
    empty = [row for row, ids in enumerate(columns["input_ids"]) if not len(ids)]
    if not empty:
        return
    fill = {
        "input_ids": next(found for name in STANDS_IN if (found := getattr(tokenizer, name)) is not None),
        "token_type_ids": 0,
        "attention_mask": 1,
        "words": -1,
    }
    for name in fill.keys() & columns.keys():
        for row in empty:
            columns[name][row] = [fill[name]]


def present(owners: Sequence[int]) -> list[int]:
    """The words that have a token, in order; `owners` is a row of the column `words`."""
    return sorted({word for word in owners if word >= 0})


def _positions(config: PreTrainedConfig) -> int | None:
    rows = getattr(config, "max_position_embeddings", None)
    if not isinstance(rows, int) or rows <= 0:
        return None
    return rows - (cast(int, config.pad_token_id) + 1 if config.model_type in OFFSET_POSITIONS else 0)


def _encode(
    batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int, tagging: bool
) -> pa.Table:
    in_words = tagging and "words" in batch
    # verbose=False: no warning about texts longer than the model takes; they are cut, as the caller asked.
    tokens = tokenizer(
        batch["words"] if in_words else batch["text"],
        batch.get("text_pair"),
        is_split_into_words=in_words,
        truncation=True,
        max_length=max_length,
        padding=False,
        verbose=False,
    )
    lists = {name: tokens[name] for name in TOKEN_TYPES if name in tokens}
    if tagging:
        owners = [[-1 if word is None else word for word in tokens.word_ids(row)] for row in range(len(batch["text"]))]
        if "label" in batch:
            owners = [
                [-1 if word < 0 or tags[word] == LEFT_OUT else word for word in own]
                for tags, own in zip(batch["label"], owners, strict=True)
            ]
        lists["words"] = owners
    with_tokens(lists, tokenizer)
    columns = {name: pa.array(lists[name], pa.list_(kind)) for name, kind in TOKEN_TYPES.items() if name in lists}
    if tagging:
        columns["words"] = pa.array(owners, pa.list_(pa.int32()))
        if "label" in batch:
            kept = [[tags[word] for word in present(own)] for tags, own in zip(batch["label"], owners, strict=True)]
            columns["labels"] = pa.array(kept, pa.list_(pa.int32()))
    elif "label" in batch:
        columns["labels"] = pa.array(batch["label"])
    return pa.table(columns)
