"""Words in, tags out: what a tagging model reads of a text, and its answers word by word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from exitkit.data.batches import padded, present, with_tokens
from exitkit.engine.stream import Batch
from exitkit.engine.trace import Trace
from exitkit.tasks import Tagging
from exitkit.tasks.tags import spans, words_in

Sentence = str | list[str]
"""A text, or its words."""


@dataclass(frozen=True)
class Read:
    """What became of one sentence."""

    text: str | None  # None where words were given
    offsets: list[tuple[int, int]]  # of the words in the text; empty where words were given
    count: int  # words
    seen: list[int]  # those that have a token


def batch_of(
    sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Batch, list[Read]]:
    """A padded batch with its `words`; see `tagging.words_in` for what the words of a text are."""
    columns: dict[str, list[Any]] = {}
    found = []
    for sentence in sentences:
        text = None if isinstance(sentence, list) else sentence
        places = [] if text is None else words_in(text)
        words = sentence if text is None else [text[start:end] for start, end in places]
        tokens = tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=max_length, padding=False, verbose=False
        )
        owners = [-1 if word is None else word for word in tokens.word_ids()]
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            if name in tokens:
                columns.setdefault(name, []).append(tokens[name])
        columns.setdefault("words", []).append(owners)
        found.append(Read(text, places, len(words), present(owners)))
    with_tokens(columns, tokenizer)
    return padded(columns, tokenizer), found


def answers(
    trace: Trace, read: Sequence[Read], task: Tagging, layers: bool, probabilities: bool
) -> list[dict[str, Any]]:
    """`tags`, `score` and `exit` of every sentence, a list with an entry per word each.

    A word without a token has the fallback tag, and None for the others. For texts also `words`, the words' offsets,
    and where tags write spans `spans`, with offsets and the smallest score of their words.
    """
    shares = task.probabilities(trace.logits).cpu()
    counts = [len(one.seen) for one in read]
    columns = {"exit": trace.exit.cpu(), "layers": trace.layers.cpu()} if layers else {"exit": trace.exit.cpu()}
    split = {name: torch.split(values, counts) for name, values in columns.items()}
    found = []
    for number, (one, share) in enumerate(zip(read, torch.split(shares, counts), strict=True)):
        found.append(_row(one, share, {name: parts[number] for name, parts in split.items()}, task, probabilities))
    return found


def _row(
    read: Read, shares: Tensor, columns: Mapping[str, Tensor], task: Tagging, probabilities: bool
) -> dict[str, Any]:
    best = shares.max(dim=-1)
    tags = _spread([task.labels[number] for number in best.indices.tolist()], read, task.labels[task.fallback])
    row: dict[str, Any] = {"tags": tags, "score": _spread(best.values.tolist(), read, None)}
    row |= {name: _spread(values.tolist(), read, None) for name, values in columns.items()}
    if read.text is not None:
        row["words"] = [list(place) for place in read.offsets]
        if task.scheme is not None:
            row["spans"] = [
                {
                    "start": read.offsets[first][0],
                    "end": read.offsets[end - 1][1],
                    "label": kind,
                    "text": read.text[read.offsets[first][0] : read.offsets[end - 1][1]],
                    "score": min((score for score in row["score"][first:end] if score is not None), default=None),
                }
                for first, end, kind in sorted(spans([tags], task.scheme)[0])
            ]
    if probabilities:
        named = [dict(zip(task.labels, share, strict=True)) for share in shares.tolist()]
        row["probabilities"] = _spread(named, read, None)
    return row


def _spread(values: Sequence[Any], read: Read, missing: Any) -> list[Any]:
    """An entry per word, also for those that the model never saw."""
    everyone = [missing] * read.count
    for word, value in zip(read.seen, values, strict=True):
        everyone[word] = value
    return everyone
