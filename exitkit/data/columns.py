"""Which columns hold the text and the label: by the usual names, or as told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

from exitkit.configuration.config import DataColumns
from exitkit.errors import UsageError, one_of

PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "context"),
    ("question", "passage"),
    ("question", "answer"),
    ("text1", "text2"),
)
# A name of an earlier rank wins; two of one rank are ambiguous. Complete pairs stand in the first rank.
SINGLES = (("text", "sentence"), ("review", "content", "question"), ("tokens", "words"))
LabelUse: TypeAlias = Literal["needed", "optional", "ignored"]
"""Whether labels must be there, are taken when every row has one, or are not looked at (prediction: a label
column may hold anything)."""

LABELS = ("label", "labels", "class", "target")
TAGS = ("tags", "ner_tags", "upos")
"""Labels of words; looked for where no label of the whole text is there, or tagging is asked for."""
WORDS = SINGLES[-1]


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read. As a request, None means "find it"; as an answer, "there is none"."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    group: str | None = None  # what rows are told apart by in a report; read only where it is asked for

    def as_dict(self) -> dict[str, str | None]:
        """The names as plain data, for YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, str | None]) -> Columns:
        """The inverse of `as_dict`."""
        return cls(**plain)


USUAL = Columns()  # find every column by its usual names


def find_columns(names: Sequence[str], asked: Columns, use_labels: LabelUse, kind: str | None = None) -> Columns:
    """The columns to read out of `names`: those asked for, the others by their usual names in any case.

    `kind` is that of the task where it is known. In tagging the text is a column of words, if there is one.

    With `asked.text` and no `asked.text_pair` the text stands alone: whoever names the text names all of it.

    Raises UsageError: a column asked for is not there, none fits, or more than one does.
    """
    for given in (asked.text, asked.text_pair, asked.label, asked.group):
        if given is not None and given not in names:
            raise UsageError(one_of("column", given, names))
    if kind is None and _has_tags(names, asked):
        kind = "tagging"
    if kind == "tagging" and asked.text is None:
        words = [name for usual in WORDS for name in _called(usual, names)]
        asked = replace(asked, text=words[0] if len(words) == 1 else None)
    free = [name for name in names if name not in (asked.text, asked.text_pair, asked.label)]
    text, text_pair = (asked.text, asked.text_pair) if asked.text else _find_text(free, asked, names)
    label = None
    if use_labels != "ignored":
        rest = [name for name in free if name not in (text, text_pair)]
        usual = TAGS if kind == "tagging" and any(_called(name, names) for name in TAGS) else LABELS
        label = asked.label or _find_label(rest, names, usual, use_labels == "needed")
    used = [name for name in (text, text_pair, label) if name is not None]
    if len(set(used)) < len(used):
        raise UsageError(f"one column is asked for twice: {_listed(used)}. Name a different column for each.")
    return Columns(text, text_pair, label, asked.group)


def _find_text(free: Sequence[str], asked: Columns, names: Sequence[str]) -> tuple[str, str | None]:
    """The text and, unless `asked` names it, what stands beside it."""
    ranks = _text_candidates(free)
    found = next((rank for rank in ranks if rank), [])
    if not found:
        raise UsageError(
            f"no column looks like the text. Columns there are: {_listed(names)}. Say which with "
            "--text-column (and --pair-column for pairs). In a csv or tsv file the first line must hold "
            "the column names."
        )
    if len(found) > 1:
        raise UsageError(
            f"more than one column may be the text: {' or '.join(map(_listed, found))}. Say which with "
            "--text-column (and --pair-column for pairs)."
        )
    text, *pair = found[0]
    return text, asked.text_pair or next(iter(pair), None)


def _text_candidates(free: Sequence[str]) -> list[list[tuple[str, ...]]]:
    """Candidates by rank; half of a complete pair is no candidate of its own."""
    pairs = [(a, b) for first, second in PAIRS for a in _called(first, free) for b in _called(second, free)]
    taken = {name for pair in pairs for name in pair}
    singles: list[list[tuple[str, ...]]] = [
        [(name,) for usual in rank for name in _called(usual, free) if name not in taken] for rank in SINGLES
    ]
    return [[*pairs, *singles[0]], *singles[1:]]


def _has_tags(names: Sequence[str], asked: Columns) -> bool:
    """Whether words have labels here, and texts have none."""
    if asked.label is not None:
        return asked.label.lower() in TAGS
    labels, tags = ([name for usual in known for name in _called(usual, names)] for known in (LABELS, TAGS))
    return bool(tags) and not labels


def _find_label(free: Sequence[str], names: Sequence[str], known: Sequence[str], needed: bool) -> str | None:
    found = [name for usual in known for name in _called(usual, free)]
    if len(found) > 1:
        raise UsageError(f"more than one column may be the label: {_listed(found)}. Say which with --label-column.")
    if not found and needed:
        raise UsageError(
            f"no column looks like the label. Columns there are: {_listed(names)}. Say which with --label-column."
        )
    return found[0] if found else None


def _called(usual: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower() == usual]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def columns_of(settings: DataColumns) -> Columns:
    """The column names of a configuration."""
    return Columns(settings.text_column, settings.pair_column, settings.label_column)
