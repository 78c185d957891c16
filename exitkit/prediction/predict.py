"""`exitkit predict`: a file or stdin in, an answer a row out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from exitkit.artifacts import plans
from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.cascade import open_artifact
from exitkit.configuration import parsing, runtime
from exitkit.configuration.config import PredictConfig
from exitkit.errors import ExitkitError
from exitkit.plugins import installed
from exitkit.prediction.lines import BadLine, Line
from exitkit.prediction.predictor import NOT_FINITE, Answer, Predictor
from exitkit.prediction.reading import read
from exitkit.prediction.texts import AfterRest, chunks
from exitkit.prediction.writing import open_writer
from exitkit.tasks import Tagging

log = logging.getLogger("exitkit")

MOST_NAMED = 100  # lines that are left out and named in the summary


def _columns(model: Artifact) -> tuple[str, str | None] | None:
    """The columns of its training data; None where rows were given without names."""
    columns = model.card.data["columns"]
    return None if columns.get("text") is None else (columns["text"], columns.get("text_pair"))


def predict(settings: PredictConfig) -> dict[str, Any]:
    """Answer a file or stdin, as `exitkit predict` does. Memory does not grow with the number of rows.

    Returns:
        A summary: rows answered, lines skipped, exits taken.
    """
    parsing.require(settings, "artifact")
    assert settings.artifact is not None
    source = "-" if settings.input == "-" else Path(settings.input)
    registry = installed()
    model = open_artifact(settings.artifact, registry, runtime.device(settings), runtime.inference_dtype(settings))
    predictor = Predictor(model, registry)
    plan = plans.plan(model, registry, settings.policy, settings.speedup, settings.max_exit)
    lines = read(
        cast(Any, source),
        text_column=settings.text_column,
        pair_column=settings.pair_column,
        expects_pair=bool(model.card.data["columns"].get("text_pair")),
        keeps_words=isinstance(model.task, Tagging),
        trained_on=_columns(model),
        input_format=settings.input_format,
    )
    skipped = Skipped()
    rows = 0
    taken: Counter[int | None] = Counter()
    good = _good_lines(lines, settings, skipped)
    with open_writer(settings.output, source=None if source == "-" else cast(Path, source)) as writer:
        for chunk in chunks(good, settings.batch_size):
            answered = predictor.answered([line.input for line in chunk], plan, settings.probabilities)
            damaged = [line.number for line, answer in zip(chunk, answered, strict=True) if answer is None]
            if damaged and settings.on_error != "skip":  # what was answered before the first of them stays
                answered = answered[: answered.index(None)]
            answers = [answer for answer in answered if answer is not None]
            writer.write(answers)
            rows += len(answers)
            taken.update(exit for answer in answers for exit in _exits(answer))
            for number in damaged:
                _bad_line(BadLine(number, NOT_FINITE), settings, skipped)
    lost = taken[None]
    tagging = {"words_lost": lost} if isinstance(model.task, Tagging) else {}
    if lost:
        log.warning(
            "%d words have no token (behind token %d of their row, or unknown to the tokenizer) and are answered '%s'",
            lost,
            model.card.max_length,
            model.task.labels[cast(Tagging, model.task).fallback],
        )
    return {
        "artifact": str(settings.artifact),
        "policy": plan.name,
        "settings": plan.settings,
        "rows": rows,
        "skipped": skipped.count,
        "skipped_lines": skipped.named,
        "exit_histogram": [taken[exit] for exit in range(1, model.model.shape.exits + 1)],
        **tagging,
        "output": None if settings.output is None else str(settings.output),
    }


class Skipped:
    """Lines left out: all counted, the first named."""

    def __init__(self) -> None:
        self.count = 0
        self.named: list[dict[str, Any]] = []

    def add(self, line: BadLine) -> None:
        """One more."""
        self.count += 1
        if self.count <= MOST_NAMED:
            self.named.append({"line": line.number, "reason": line.reason})


def _good_lines(lines: Iterable[Line | BadLine], settings: PredictConfig, skipped: Skipped) -> Iterator[Line]:
    """Lines that can be answered; the first bad one ends the run, or bad ones are left out and named."""
    in_words: bool | None = None
    for line in lines:
        if isinstance(line, Line) and in_words is None:
            in_words = isinstance(line.text, list)
        if isinstance(line, Line) and isinstance(line.text, list) != in_words:
            both = ("a list of words", "a text") if isinstance(line.text, list) else ("a text", "lists of words")
            line = BadLine(line.number, f"{both[0]}, where the lines before are {both[1].replace('a text', 'texts')}")
        if isinstance(line, Line):
            yield line
            continue
        try:
            _bad_line(line, settings, skipped)
        except ExitkitError as error:
            raise AfterRest(error) from None


def _bad_line(line: BadLine, settings: PredictConfig, skipped: Skipped) -> None:
    """Leave a line out and name it. Raises ExitkitError: --on-error says to stop."""
    where = "stdin" if settings.input == "-" else settings.input
    if settings.on_error != "skip":
        raise ExitkitError(
            f"{where}, line {line.number}: {line.reason}. Mend the line, or leave such lines out with --on-error skip."
        )
    log.warning("%s, line %d: %s; skipped", where, line.number, line.reason)
    skipped.add(line)


def _exits(answer: Answer) -> list[int | None]:
    """The exits of an answer's units; None for words without a token."""
    exits = answer["exit"]
    return exits if isinstance(exits, list) else [exits]
