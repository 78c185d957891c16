"""Answers for new texts: `exitkit.load(DIR).predict([...])`, and what `exitkit predict` runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from exitkit import config, parsing, runtime
from exitkit.artifact import Artifact
from exitkit.calibration.calibrate import held_settings
from exitkit.calibration.search import Candidate, pick
from exitkit.cascades.folder import open_artifact
from exitkit.config import Choice, PredictConfig
from exitkit.errors import ExitkitError, UsageError
from exitkit.limits import NONE, Limits
from exitkit.measure import full_model
from exitkit.plugins import Registry, installed
from exitkit.policy import ExitPolicy
from exitkit.prediction import words
from exitkit.prediction.lines import BadLine, Line
from exitkit.prediction.reading import read
from exitkit.prediction.writing import open_writer
from exitkit.settings import Schedule, schedule
from exitkit.stream import Batch
from exitkit.tasks import Tagging
from exitkit.trace import Trace

log = logging.getLogger("exitkit")

Text = str | tuple[str, str] | list[str]
"""A text, a pair of texts (a tuple, or a list where the model takes pairs), or the words of one text (a list)."""
Answer = dict[str, Any]
MOST_NAMED = 100


class Predictor:
    """A loaded artifact. Make one with `exitkit.load`."""

    def __init__(self, model: Artifact, registry: Registry) -> None:
        self.artifact, self.registry = model, registry

    @property
    def labels(self) -> tuple[str, ...]:
        """The label names, in the order of `predict_proba`'s columns."""
        return self.artifact.card.labels

    def predict(
        self,
        texts: Sequence[Text],
        *,
        policy: str | Mapping[str, Any] | None = None,
        speedup: float | str | None = None,
        max_exit: int | None = None,
        batch_size: int = 32,
        probabilities: bool = False,
    ) -> list[Answer]:
        """Answer texts, in their order.

        Args:
            texts: strings, or (text, second text) for a model of pairs; a list of strings is one text in words.
            policy: a policy's name, or a mapping of its `name` and settings; default is what calibrate stored, else
                the full model.
            speedup: use the calibrated setting for this speed-up.
            max_exit: a deadline: everybody is answered at this exit at the latest.
            batch_size: rows at a time; answers do not depend on it.
            probabilities: add those of all labels.

        Returns:
            One `{"label", "score", "exit"}` per text: the label, its probability, the exit that answered (from 1). In
            multi-label, `label` and `score` are lists of the labels that hold; in regression `label` is the value and
            `score` None. In tagging `{"tags", "score", "exit"}`, lists with an entry per word; for a text that is not
            given in words also `words`, their offsets in it, and `spans` where the tags write any.

        Raises:
            UsageError: not texts, or a policy or speed-up that this model has not been calibrated for.
        """
        plan = self.plan(policy, speedup, max_exit)
        answers: list[Answer] = []
        for chunk in _chunks(iter(self._checked(texts)), batch_size):
            answers += self.answered(chunk, plan, probabilities)[0]
        return answers

    def predict_proba(
        self,
        texts: Sequence[Text],
        *,
        policy: str | Mapping[str, Any] | None = None,
        speedup: float | str | None = None,
        max_exit: int | None = None,
        batch_size: int = 32,
    ) -> npt.NDArray[np.float32]:
        """Probabilities [N, C] of all labels; arguments as in `predict`. Not for tagging, where texts have many."""
        if isinstance(self.artifact.task, Tagging):
            raise UsageError("a tagging model answers words; use predict(texts, probabilities=True).")
        plan = self.plan(policy, speedup, max_exit)
        chunks = _chunks(iter(self._checked(texts)), batch_size)
        task = self.artifact.task
        found = [task.probabilities(self._run(self._batch(chunk), plan).logits).cpu().numpy() for chunk in chunks]
        return np.concatenate(found) if found else np.zeros((0, len(self.labels)), dtype=np.float32)

    def _checked(self, texts: Sequence[Text]) -> Sequence[Text]:
        pairs = bool(self.artifact.card.data["columns"].get("text_pair"))
        return _checked(texts, pairs, isinstance(self.artifact.task, Tagging))

    def plan(
        self,
        policy: str | Mapping[str, Any] | None = None,
        speedup: float | str | None = None,
        max_exit: int | None = None,
    ) -> Schedule:
        """The schedule that arguments of `predict` mean."""
        choice = None
        if policy is not None:
            choice = parsing.parse(PredictConfig, {"policy": policy}).policy
        wanted = None if speedup is None else parsing.parse(PredictConfig, {"speedup": speedup}).speedup
        return stored_plan(self.artifact, self.registry, choice, wanted, max_exit)

    def answered(
        self, texts: Sequence[Text], plan: Schedule, probabilities: bool = False
    ) -> tuple[list[Answer], Trace]:
        """Answer one batch: a row per text, and what happened."""
        task = self.artifact.task
        skips = type(plan.first).gate is not ExitPolicy.gate
        if isinstance(task, Tagging):
            sentences = cast(Sequence[words.Sentence], texts)
            batch, read = words.batch_of(sentences, self.artifact.tokenizer, self.artifact.card.max_length)
            trace = self._run(batch, plan)
            return words.answers(trace, read, task, skips, probabilities), trace
        trace = self._run(self._batch(texts), plan)
        return self._rows(trace, skips, probabilities), trace

    def _batch(self, texts: Sequence[Text]) -> Batch:
        batch: Batch = {}
        for prefix, reader in self.artifact.readers.items():
            tokens = reader.tokenizer(
                [text if isinstance(text, str) else text[0] for text in texts],
                None if isinstance(texts[0], str) else [text[1] for text in texts],
                truncation=True,
                max_length=reader.max_length,
                padding=True,
                return_tensors="pt",
                verbose=False,
            )
            batch |= {prefix + name: rows for name, rows in tokens.items()}
        return batch

    def _run(self, batch: Batch, plan: Schedule) -> Trace:
        device = self.artifact.model.device
        trace = self.artifact.model.run({name: tensor.to(device) for name, tensor in batch.items()}, plan)
        if not torch.isfinite(trace.logits).all():
            raise ExitkitError(f"{self.artifact.folder}: the model answers NaN or infinite values.")
        return trace

    def _rows(self, trace: Trace, skips: bool, probabilities: bool) -> list[Answer]:
        answers: list[Answer] = []
        said = self.artifact.task.rows(trace.logits, probabilities)
        for row, exit, layers in zip(said, trace.exit.tolist(), trace.layers.tolist(), strict=True):
            shares = row.pop("probabilities", None)
            answer: Answer = {**row, "exit": exit}
            if skips:
                answer["layers"] = layers
            if shares is not None:
                answer["probabilities"] = shares
            answers.append(answer)
        return answers


def load(folder: str | Path, *, device: str = "auto", precision: str = "auto", threads: int | None = None) -> Predictor:
    """Load a trained model to answer texts with.

    Raises:
        UsageError: the folder is not an artifact.
        ExitkitError: one of its files is missing or damaged.
    """
    where = parsing.parse(config.Common, {"device": device, "precision": precision, "threads": threads})
    registry = installed()
    model = open_artifact(Path(folder), registry, runtime.device(where), runtime.inference_dtype(where))
    return Predictor(model, registry)


def stored_plan(
    model: Artifact,
    registry: Registry,
    choice: Choice | None,
    speedup: float | None = None,
    max_exit: int | None = None,
) -> Schedule:
    """`choose_plan` with a deadline: everybody is answered at exit `max_exit` at the latest."""
    plan = choose_plan(model, registry, choice, speedup)
    if max_exit is None:
        return plan
    limits = replace(plan.limits, max_exit=max_exit)
    limits.check(plan.name, registry.policy(plan.name), model.model.shape)
    return replace(plan, limits=limits)


def choose_plan(model: Artifact, registry: Registry, choice: Choice | None, speedup: float | None = None) -> Schedule:
    """The policy to answer with: as asked, else as calibrated, else the full model (with a notice).

    Raises:
        UsageError: settings are missing because the policy was not calibrated, or the speed-up is out of reach.
    """
    stored = model.policies.get("policies", {})
    if choice is None or not choice.name:
        if choice is not None and choice.options:
            choice = Choice(name=[model.policies.get("default", model.default_policy)], **choice.options)
        elif not stored:
            if speedup is not None:
                raise UsageError(
                    f"{model.folder} has not been calibrated, so there is no setting for {speedup:g}x. Run "
                    f"'exitkit calibrate {model.folder} --target-speedup {speedup:g}x' first."
                )
            log.warning("%s has not been calibrated: the full model answers every row", model.folder)
            return full_model(model, registry)
        else:
            choice = Choice(name=[model.policies["default"]])
    if len(choice.name) != 1:
        raise UsageError(f"--policy: predict takes one policy, not {len(choice.name)}.")
    name = choice.name[0]
    policy = registry.policy(name)
    given = held_settings(choice, [name], registry)[name]
    limits = NONE
    if name in stored:
        limits = limits_of(stored[name], model)
        settings = {**_stored_settings(model, name, stored[name], speedup), **given}
    elif given or speedup is None:
        if not given:
            log.warning("policy '%s' has not been calibrated: it runs with its default settings", name)
        settings = given
    else:
        others = f" Calibrated: {', '.join(stored)}." if stored else ""
        raise UsageError(
            f"policy '{name}' has not been calibrated on {model.folder}, so there is no setting for {speedup:g}x."
            f"{others} Run 'exitkit calibrate {model.folder} --policy {name} --target-speedup {speedup:g}x' first."
        )
    return schedule(name, policy, settings, model.model.shape, limits)


def limits_of(entry: Mapping[str, Any], model: Artifact) -> Limits:
    """The rules that a policy was calibrated with."""
    return Limits.from_dict(entry.get("limits", {}), model.card.labels)


def point_for(entry: Mapping[str, Any], speedup: float, currency: str | None = None) -> Candidate | None:
    """The stored setting for a speed-up, by the rule that calibrate picks with; None when none is that fast."""
    currency = currency or entry["currency"]
    points = [
        Candidate(point["settings"], point["speedup"], point["score"], torch.empty(0)) for point in entry["frontier"]
    ]
    chosen = pick(points, currency, speedup)
    return chosen if chosen.speedup[currency] >= 0.97 * speedup else None


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
    plan = stored_plan(model, registry, settings.policy, settings.speedup, settings.max_exit)
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
    rows = lost = 0
    histogram = [0] * model.model.shape.exits
    good = _good_lines(lines, settings, skipped)
    with open_writer(settings.output, source=None if source == "-" else cast(Path, source)) as writer:
        for chunk in _chunks(good, settings.batch_size):
            texts = [line.input for line in chunk]
            answers, trace = predictor.answered(texts, plan, settings.probabilities)
            writer.write(answers)
            rows += len(texts)
            lost += sum(exit is None for answer in answers if "tags" in answer for exit in answer["exit"])
            histogram = [a + b for a, b in zip(histogram, trace.histogram(len(histogram)), strict=True)]
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
        "exit_histogram": histogram,
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
    where = "stdin" if settings.input == "-" else settings.input
    pending: ExitkitError | None = None
    in_words: bool | None = None
    for line in lines:
        if isinstance(line, Line) and in_words is None:
            in_words = isinstance(line.text, list)
        if isinstance(line, Line) and isinstance(line.text, list) != in_words:
            both = ("a list of words", "a text") if isinstance(line.text, list) else ("a text", "lists of words")
            line = BadLine(line.number, f"{both[0]}, where the lines before are {both[1].replace('a text', 'texts')}")
        if isinstance(line, Line):
            yield line
        elif settings.on_error == "skip":
            log.warning("%s, line %d: %s; skipped", where, line.number, line.reason)
            skipped.add(line)
        else:
            pending = ExitkitError(
                f"{where}, line {line.number}: {line.reason}. Mend the line, or leave such lines out with "
                "--on-error skip."
            )
            break
    if pending is not None:
        raise _AfterRest(pending)


class _AfterRest(Exception):
    """A bad line, raised once the good lines before it have been handed on."""


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size`. What came before an error is handed on before it is raised."""
    while True:
        chunk: list[Any] = []
        failed: _AfterRest | None = None
        try:
            for item in islice(items, size):
                chunk.append(item)
        except _AfterRest as error:
            failed = error
        if chunk:
            yield chunk
        if failed is not None:
            raise cast(ExitkitError, failed.args[0])
        if len(chunk) < size:
            return


def _checked(texts: Sequence[Text], pairs: bool, in_words: bool) -> Sequence[Text]:
    """Texts as the model takes them; words joined, unless they are to be answered. Raises UsageError for others."""
    if isinstance(texts, str):
        raise UsageError("predict takes a list of texts; for a single one write predict([text]).")
    found: list[Text] = []
    for number, text in enumerate(texts):
        strings = isinstance(text, tuple | list) and all(isinstance(part, str) for part in text)
        if isinstance(text, str) and not pairs:
            found.append(text)
        elif strings and pairs and len(text) == 2:
            found.append((text[0], text[1]))
        elif strings and isinstance(text, list) and not pairs:
            found.append(list(text) if in_words else " ".join(text))
        else:
            wanted = "a pair of strings, as this model takes" if pairs else "a string or a list of words"
            raise UsageError(f"text {number} is {_shown(text)}, not {wanted}.")
    return found


def _shown(text: object) -> str:
    if isinstance(text, str):
        return "a single text"
    if isinstance(text, tuple | list):
        return f"a {type(text).__name__} of {len(text)}"
    return type(text).__name__


def _stored_settings(model: Artifact, name: str, entry: Mapping[str, Any], speedup: float | None) -> dict[str, Any]:
    if speedup is None:
        return dict(entry["chosen"]["settings"])
    point = point_for(entry, speedup)
    if point is None:
        fastest = max(p["speedup"][entry["currency"]] for p in entry["frontier"])
        raise UsageError(
            f"policy '{name}' reaches {fastest:.2f}x in {entry['currency']} on {model.folder}, not {speedup:g}x."
        )
    return dict(point.settings)
