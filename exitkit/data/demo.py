"""Generated reviews for the demo and the tests, and a small untrained encoder for them: nothing is
downloaded.

The reviews are graded by what it takes to read them, so that early exits have something to win: a word, a
word and its negation, or the order of two clauses.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SIZES = {"train": 6000, "validation": 600, "test": 1200}

# fmt: off
THINGS = (
    "acting", "cast", "dialogue", "direction", "editing", "ending", "film", "humour", "music", "opening",
    "pacing", "plot", "score", "story",
)
GOOD = (
    "beautiful", "brilliant", "charming", "clever", "delightful", "excellent", "funny", "good", "great",
    "lovely", "moving", "superb",
)
BAD = (
    "awful", "bad", "boring", "clumsy", "dreadful", "dull", "flat", "lazy", "poor", "silly", "terrible",
    "tiresome",
)
VERBS = ("was", "felt", "seemed", "looked")
DEGREES = ("very", "really", "quite", "rather", "truly")
NEGATIONS = ("not", "never", "hardly", "scarcely")
SCENES = (
    "i saw it on monday", "we watched it at home", "it runs for two hours", "the room was full",
    "my sister chose it", "it was shown last week", "the tickets were cheap", "we sat in the front row",
)
# Negations that say nothing of the film: without them, a negation anywhere would give the answer away.
IDLE_SCENES = (
    "it was not a long evening", "we had never been there", "there was hardly a queue",
    "i scarcely knew the book", "my sister did not come", "we never read the papers",
    "it was hardly raining", "the room was scarcely lit",
)
# fmt: on
PRAISE = {"positive": GOOD, "negative": BAD}
OTHER = {"positive": "negative", "negative": "positive"}

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@cache
def reviews() -> Mapping[str, Mapping[str, list[str]]]:
    """`demo:reviews`: columns text, label and grade of every split. No text is in it twice."""
    rng = random.Random(0)
    rows: dict[str, tuple[str, str, str]] = {}
    while len(rows) < sum(SIZES.values()):
        label = rng.choice(("positive", "negative"))
        grade = rng.choices(("easy", "negated", "contrast"), (6, 4, 2))[0]
        text = GRADES[grade](rng, label)
        rows.setdefault(text, (text, label, grade))
    left = iter(rows.values())
    return {split: _columns([next(left) for _ in range(size)]) for split, size in SIZES.items()}


@cache
def tags() -> Mapping[str, Mapping[str, list[list[str]]]]:
    """`demo:tags`: the same reviews in words, with tags in IOB2: what is judged, and praise or blame.

    A negation before the judgement turns it round, so that the tag of a word depends on the words before it.
    """
    found = {}
    for split, columns in reviews().items():
        tokens = [re.findall(r"\w+|[^\w\s]", text) for text in columns["text"]]
        found[split] = {"tokens": tokens, "tags": [_tagged(words) for words in tokens]}
    return found


def _tagged(words: Sequence[str]) -> list[str]:
    found = ["B-THING" if word in THINGS else "O" for word in words]
    for place, word in enumerate(words):
        if word not in GOOD and word not in BAD:
            continue
        start = place
        while start and words[start - 1] in (*DEGREES, *NEGATIONS):
            start -= 1
        negated = any(before in NEGATIONS for before in words[start:place])
        kind = "PRAISE" if (word in GOOD) != negated else "BLAME"
        found[start : place + 1] = [f"B-{kind}", *[f"I-{kind}"] * (place - start)]
    return found


Columns = Mapping[str, Mapping[str, list[Any]]]
DATASETS: Mapping[str, Callable[[], Columns]] = {"reviews": reviews, "tags": tags}


def vocabulary() -> tuple[str, ...]:
    """Every word and mark that a review can hold, sorted."""
    grammar = ("the", "and", "but", "although", "matters", "i", "would", "say", ",", ".")
    words = {*grammar, *THINGS, *GOOD, *BAD, *VERBS, *DEGREES, *NEGATIONS}
    return tuple(sorted(words.union(*(scene.split() for scene in SCENES + IDLE_SCENES))))


def build_model(folder: Path, layers: int = 8, width: int = 96, heads: int = 4, seed: int = 0) -> None:
    """Write a small BERT with random weights, and a tokenizer of the demo's words, into `folder`."""
    tokenizer = _tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,  # BERT's 0.02 is for width 768; a narrow model starts to learn later with it
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _easy(rng: random.Random, label: str) -> str:
    return _with_scene(rng, SCENES, _opinion(rng, label))


def _negated(rng: random.Random, label: str) -> str:
    """Up to two negations that turn the opinion round, or an idle one: no word gives the answer away."""
    kind = rng.choice(("idle", "near", "far", "both"))
    if kind == "idle":
        return _with_scene(rng, IDLE_SCENES, _opinion(rng, label))
    near = "" if kind == "far" else rng.choice(NEGATIONS)
    far = "" if kind == "near" else rng.choice(NEGATIONS)
    said = _opinion(rng, label if kind == "both" else OTHER[label], near)
    return _with_scene(rng, SCENES, " ".join(f"i would {far} say {said}".split()))


def _contrast(rng: random.Random, label: str) -> str:
    """Two opinions against each other. The clause after "but" decides; "although" makes its own clause give
    way; or the last words say which of the two things counts.
    """
    things = rng.sample(THINGS, 2)
    main, other = (_opinion(rng, said, thing=thing) for said, thing in zip((label, OTHER[label]), things, strict=True))
    first, second = rng.sample((main, other), 2)
    return rng.choice(
        (
            f"{other} , but {main} .",
            f"although {other} , {main} .",
            f"{main} , although {other} .",
            f"{first} and {second} , and the {things[0]} matters .",
        )
    )


GRADES: Mapping[str, Callable[[random.Random, str], str]] = {
    "easy": _easy,
    "negated": _negated,
    "contrast": _contrast,
}


def _opinion(rng: random.Random, label: str, negation: str = "", thing: str = "") -> str:
    degree = rng.choice(("", *DEGREES))
    thing = thing or rng.choice(THINGS)
    words = ("the", thing, rng.choice(VERBS), negation, degree, rng.choice(PRAISE[label]))
    return " ".join(word for word in words if word)


def _with_scene(rng: random.Random, scenes: tuple[str, ...], opinion: str) -> str:
    clauses = [rng.choice(scenes), opinion]
    rng.shuffle(clauses)
    return f"{clauses[0]} and {clauses[1]} ."


def _columns(rows: list[tuple[str, str, str]]) -> dict[str, list[str]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(("text", "label", "grade"))}


def _tokenizer() -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        padding_side="right",
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
