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

from exitkit.tasks.metrics import OfSums, Values, f1, macro, share

SCHEMES = {"IOB2": (IOB2, set("BIO")), "IOBES": (IOBES, set("BIOES")), "BILOU": (BILOU, set("BIOLU"))}
OUTSIDE = "O"
LEFT_OUT = -100
"""The tag number of a word that has none: it is neither trained on nor scored."""

Span = tuple[int, int, str]
"""First word, word after the last, kind."""


HAN_AND_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
VARIANTS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"  # selectors, which say how the sign before them looks
RUNS = re.compile(f"[{HAN_AND_KANA}][{VARIANTS}]*|[^\\s{HAN_AND_KANA}]+")
OPENS_WORDS = "@#"  # of names and topics

# An emoji of several characters: a flag; a key; or pictures joined by U+200D, with colours of skin, selectors and the
# letters of regional flags behind each.
PICTURES = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
PICTURE = f"[{PICTURES}][\ufe0e\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"
EMOJI = re.compile(f"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{PICTURE}(?:\u200d{PICTURE})*")


def words_in(text: str) -> list[tuple[int, int]]:
    """Where the words of a raw text begin and end, by one rule for all models.

    Words stand between white space; a Chinese or Japanese sign is a word. Punctuation and symbols around a word are
    words of their own, equal ones in a row together; those inside stay (`don't`, `e-mail`), and so does the full stop
    of an abbreviation (`U.S.`, `J.`). An emoji is one symbol, however many characters it takes. What has neither
    letters nor digits stays whole (`:-)`). Corpora differ: where exactly their words matter, give words.
    """
    found = []
    for run in RUNS.finditer(text):
        start, end = run.span()
        emoji = [one.span() for one in EMOJI.finditer(text, start, end) if one.end() - one.start() > 1]
        symbols = {place for span in emoji for place in range(*span)}
        letters = [place for place in range(start, end) if unicodedata.category(text[place])[0] not in "PS"]
        inner = [place for place in letters if place not in symbols]
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
        found += [*_alike(text, start, first, emoji), (first, last), *_alike(text, last, end, emoji)]
    return found


def _alike(text: str, start: int, end: int, emoji: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Runs of one character, or of one emoji."""
    ends = dict(emoji)
    signs = []
    place = start
    while place < end:
        signs.append((place, ends.get(place, place + 1)))
        place = signs[-1][1]
    for _, run in groupby(signs, key=lambda sign: text[slice(*sign)]):
        alike = list(run)
        yield alike[0][0], alike[-1][1]


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


NOTATIONS = {
    "": r"[BIELMSU]-.+",
    "small letters before the kind": r"[bielmsu]-.+",
    "another sign than - behind the letter": r"[BIELMSUbielmsu][_|:./].+",
    "the letter behind the kind": r".+[-_|:./][BIELMSUbielmsu]",
    "letters without a kind": r"[BIELMSUbielmsu]",
}
"""Ways to write spans, by what is unusual about them; the first is how SCHEMES write them."""
OUTSIDES = (OUTSIDE, "o")


def notation(labels: Sequence[str]) -> str | None:
    """What keeps tags from being read as a scheme, where most of them look as if they wrote spans; else None.

    In an unusual notation B or I must be among the letters, and beside them an outside, or a kind with two letters.
    """
    if scheme_of(labels) is not None:
        return None
    tags = [label for label in labels if label not in OUTSIDES]
    for what, pattern in NOTATIONS.items():
        odd = [tag for tag in tags if not re.fullmatch(pattern, tag)]
        fitting = [tag for tag in tags if tag not in odd]
        sure = not what or (_letters(fitting) & set("BI") and _several(fitting, labels))
        if 2 * len(odd) < len(tags) and sure:
            return f"{', '.join(map(repr, (odd or fitting)[:5]))} {_unusual(what, odd, fitting)}"
    return None


def _unusual(what: str, odd: Sequence[str], fitting: Sequence[str]) -> str:
    if odd:
        return "do not fit"
    if what:
        return f"have {what}"
    letters = "".join(sorted(_letters(fitting)))
    return "have I- only: the first word of each span is B- there" if letters == "I" else f"use the letters {letters}"


def _letters(tags: Sequence[str]) -> set[str]:
    """The letters of schemes in tags that fit one of the notations."""
    return {(tag[0] if re.match("[BIELMSUbielmsu]([^A-Za-z0-9]|$)", tag) else tag[-1]).upper() for tag in tags}


def _several(tags: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether tags write spans: an outside is among the labels, or one kind has two letters."""
    kinds = ["" if len(tag) == 1 else re.sub("^[A-Za-z][^A-Za-z0-9]|[^A-Za-z0-9][A-Za-z]$", "", tag) for tag in tags]
    return len(tags) > 1 and (bool(set(labels) & set(OUTSIDES)) or len(set(kinds)) < len(kinds))


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
