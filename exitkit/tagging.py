"""Tags of words: answers sentence by sentence, schemes of spans, and metrics over words and spans.

Answers are an object array with one array of tag numbers per sentence, so that rows are sentences everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from seqeval.scheme import BILOU, IOB2, IOBES, Entities

from exitkit.metrics import OfSums, Values, f1, macro, share

SCHEMES = {"IOB2": (IOB2, set("BIO")), "IOBES": (IOBES, set("BIOES")), "BILOU": (BILOU, set("BIOLU"))}
OUTSIDE = "O"

Span = tuple[int, int, str]
"""First word, word after the last, kind."""


HAN_AND_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
RUNS = re.compile(f"[{HAN_AND_KANA}]|[^\\s{HAN_AND_KANA}]+")
OPENS_WORDS = "@#"  # of names and topics


def words_in(text: str) -> list[tuple[int, int]]:
    """Where the words of a raw text begin and end, by one rule for all models.

    Words stand between white space; a Chinese or Japanese sign is a word. Punctuation and symbols around a word are
    words of their own, equal ones in a row together; those inside stay (`don't`, `e-mail`), and so does the full stop
    of an abbreviation (`U.S.`, `J.`). What has neither letters nor digits stays whole (`:-)`). Corpora differ: where
    exactly their words matter, give words.
    """
    found = []
    for run in RUNS.finditer(text):
        start, end = run.span()
        inner = [place for place in range(start, end) if unicodedata.category(text[place])[0] not in "PS"]
        if not inner:
            found.append((start, end))
            continue
        first, last = inner[0], inner[-1] + 1
        if first > start and text[first - 1] in OPENS_WORDS:
            first -= 1
        bare = text[first:last]
        if (
            text[last:end].startswith(".")
            and not text[last + 1 : end].startswith(".")
            and ("." in bare or len(bare) == 1)
        ):
            last += 1
        found += [*_alike(text, start, first), (first, last), *_alike(text, last, end)]
    return found


def _alike(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of one character."""
    for _, run in groupby(range(start, end), key=text.__getitem__):
        places = list(run)
        yield places[0], places[-1] + 1


def sentences(tags: Iterable[Sequence[int] | npt.NDArray[Any]]) -> Values:
    """An object array [N] of arrays of tag numbers."""
    listed = [np.asarray(one, dtype=np.int64) for one in tags]
    found = np.empty(len(listed), dtype=object)
    found[:] = listed
    return found


def scheme_of(labels: Sequence[str]) -> str | None:
    """The scheme that tags are written in, seen from their prefixes; None for plain tags."""
    prefixes = set()
    for label in labels:
        prefix, dash, kind = label.partition("-")
        if label != OUTSIDE and not (dash and kind and len(prefix) == 1):
            return None
        prefixes.add(prefix)
    if not prefixes & set("BSU"):
        return None
    return next((name for name, (_, known) in SCHEMES.items() if prefixes <= known), None)


def odd_ones(labels: Sequence[str]) -> list[str]:
    """The tags that keep the others from being read as a scheme, where most look as if they wrote spans; else none."""
    if scheme_of(labels) is not None:
        return []
    tags = [label for label in labels if label != OUTSIDE]
    odd = [label for label in tags if not re.fullmatch("[BIELSU]-.+", label)]
    return odd if odd and 2 * len(odd) < len(tags) else []


def scheme_told(scheme: str | None) -> str:
    """A scheme for people."""
    return f"{scheme}, scored by strict spans" if scheme else "plain: no spans are seen in them"


def spans(tags: Sequence[Sequence[str]], scheme: str) -> list[set[Span]]:
    """The spans of every sentence by seqeval's strict rules: one that breaks the scheme is none."""
    entities = Entities([list(one) for one in tags], SCHEMES[scheme][0])
    return [{(entity.start, entity.end, entity.tag) for entity in one} for one in entities.entities]


def first_break(tags: Sequence[str], scheme: str) -> int | None:
    """The first word whose tag breaks the scheme beside the one before it, or at the end; None when all is well."""
    going_on = {"IOB2": "I", "IOBES": "IE", "BILOU": "IL"}[scheme]
    unfinished = () if scheme == "IOB2" else ("B", "I")  # in IOB2 a span may end anywhere
    before, kind_before = OUTSIDE, ""
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        continues = before in ("B", "I") and prefix in going_on and kind == kind_before
        if not continues and (prefix in going_on or before in unfinished):
            return place
        before, kind_before = prefix, kind
    return len(tags) - 1 if tags and before in unfinished else None


def word_accuracy() -> OfSums:
    """Share of words with the right tag."""

    def counts(truth: Values, answers: Values) -> npt.NDArray[np.float64]:
        return np.array([((t == a).sum(), len(t)) for t, a in zip(truth, answers, strict=True)], dtype=float)

    return OfSums(counts, share)


def word_f1(number: int) -> OfSums:
    """F1 of one tag over words."""

    def counts(truth: Values, answers: Values) -> npt.NDArray[np.float64]:
        rows = [((t == number), (a == number)) for t, a in zip(truth, answers, strict=True)]
        return np.array([((t & a).sum(), t.sum(), a.sum()) for t, a in rows], dtype=float)

    return OfSums(counts, f1)


def word_f1_macro(tags: int) -> OfSums:
    """F1 of every tag that occurs, in the truth or among the answers, averaged."""
    each = [word_f1(number) for number in range(tags)]

    def counts(truth: Values, answers: Values) -> npt.NDArray[np.float64]:
        return np.concatenate([one.counts(truth, answers) for one in each], axis=1)

    return OfSums(counts, macro)


def span_f1(labels: Sequence[str], scheme: str, kind: str | None = None) -> OfSums:
    """Strict F1 of spans, or of those of one kind: both ends and the kind must be right (seqeval, micro average)."""
    known = _Spans(labels, scheme, kind)

    def counts(truth: Values, answers: Values) -> npt.NDArray[np.float64]:
        both = zip(known(truth), known(answers), strict=True)
        return np.array([(len(t & a), len(t), len(a)) for t, a in both], dtype=float)

    return OfSums(counts, f1)


class _Spans:
    """The spans of sentences of tag numbers. Those of a sentence are found once: settings of a search differ in few."""

    def __init__(self, labels: Sequence[str], scheme: str, kind: str | None) -> None:
        self.labels, self.scheme, self.kind = labels, scheme, kind
        self.known: dict[bytes, set[Span]] = {}

    def __call__(self, rows: Values) -> list[set[Span]]:
        keys = [row.tobytes() for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self.known}
        found = spans([[self.labels[number] for number in row] for row in new.values()], self.scheme)
        for key, of_row in zip(new, found, strict=True):
            self.known[key] = {span for span in of_row if self.kind in (None, span[2])}
        return [self.known[key] for key in keys]
