"""Answers for new texts: `exitkit.load(DIR).predict([...])`, and what `exitkit predict` runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.cascade import open_artifact
from exitkit.calibration.calibrate import held_settings
from exitkit.calibration.search import Candidate, pick
from exitkit.configuration import config, parsing, runtime
from exitkit.configuration.config import Choice, PredictConfig
from exitkit.data.batches import Reader, padded, with_tokens
from exitkit.data.flaws import Flaw
from exitkit.engine.limits import NONE, Limits
from exitkit.engine.schedule import Schedule, schedule
from exitkit.engine.stream import Batch
from exitkit.engine.trace import Trace
from exitkit.errors import ExitkitError, UsageError
from exitkit.measuring.runs import full_model, policys_fault
from exitkit.plugins import Registry, installed
from exitkit.policy import ExitPolicy
from exitkit.prediction import words
from exitkit.prediction.lines import BadLine, Line, text_of
from exitkit.prediction.reading import read
from exitkit.prediction.writing import open_writer
from exitkit.tasks import Tagging

log = logging.getLogger("exitkit")

Text = str | tuple[str, str] | list[str]
"""A text, a pair of texts (a tuple, or a list where the model takes pairs), or the words of one text (a list)."""
Answer = dict[str, Any]
MOST_NAMED = 100
NOT_FINITE = "the model answers NaN or infinite values"


class Predictor:
    """A loaded artifact. Make one with `exitkit.load`."""

    def __init__(self, model: Artifact, registry: Registry) -> None:
        self.artifact, self.registry = model, registry
        self._modules = tuple(model.model.modules())
        self._said: set[str] = set()

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
            batch_size: rows at a time. Answers do not depend on it in fp32, but where an exit's answer ties with a
                threshold to the last digit; in bf16 a few rows per thousand may leave at another exit.
            probabilities: add those of all labels.

        Returns:
            One `{"label", "score", "exit"}` per text: the label, its probability, the exit that answered (from 1). In
            multi-label, `label` and `score` are lists of the labels that hold; in regression `label` is the value and
            `score` None. In tagging `{"tags", "score", "exit"}`, lists with an entry per word; for a text that is not
            given in words also `words`, their offsets in it, and `spans` where the tags write any.

        Raises:
            UsageError: not texts, or a policy or speed-up that this model has not been calibrated for.
            ExitkitError: the model answers a text with NaN or infinite values; the message names it by its number.
        """
        plan = self.plan(policy, speedup, max_exit)
        answers: list[Answer] = []
        for chunk in _chunks(iter(self._checked(texts)), _size(batch_size)):
            for answer in self.answered(chunk, plan, probabilities):
                answers.append(self._there(len(answers), answer))
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
        chunks = _chunks(iter(self._checked(texts)), _size(batch_size))
        task, rows = self.artifact.task, 0
        found = []
        for chunk in chunks:
            batch = self._batch(chunk)
            logits = self._run(batch, plan).logits
            for row in sorted(self._damaged(logits, batch, plan)):
                self._there(rows + row, None)
            found.append(task.probabilities(logits).cpu().numpy())
            rows += len(chunk)
        return np.concatenate(found) if found else np.zeros((0, len(self.labels)), dtype=np.float32)

    def _there(self, number: int, answer: Answer | None) -> Answer:
        if answer is None:
            raise ExitkitError(f"{self.artifact.folder}: {NOT_FINITE} for text {number}; the others can be answered.")
        return answer

    def _checked(self, texts: Sequence[Text]) -> Sequence[Text]:
        columns = self.artifact.card.data["columns"]
        tagging = isinstance(self.artifact.task, Tagging)
        return _checked(texts, bool(columns.get("text_pair")), tagging, columns.get("text") or "text")

    def plan(
        self,
        policy: str | Mapping[str, Any] | None = None,
        speedup: float | str | None = None,
        max_exit: int | None = None,
    ) -> Schedule:
        """The schedule that arguments of `predict` mean. The model is in evaluation mode from here on."""
        if any(module.training for module in self._modules):  # somebody trained it, or a part of it
            self.artifact.model.eval()
        choice = None
        if policy is not None:
            choice = parsing.parse(PredictConfig, {"policy": policy}).policy
        wanted = None if speedup is None else parsing.parse(PredictConfig, {"speedup": speedup}).speedup
        return stored_plan(self.artifact, self.registry, choice, wanted, max_exit, self._warn)

    def _warn(self, warning: str) -> None:
        """Log a warning the first time: a service asks for thousands of plans."""
        if warning not in self._said:
            self._said.add(warning)
            log.warning(warning)

    def answered(self, texts: Sequence[Text], plan: Schedule, probabilities: bool = False) -> list[Answer | None]:
        """Answer one batch: a row per text, None where the model answers NaN or infinite values."""
        task = self.artifact.task
        skips = type(plan.first).gate is not ExitPolicy.gate
        found: list[Answer]
        if isinstance(task, Tagging):
            sentences = cast(Sequence[words.Sentence], texts)
            batch, read = words.batch_of(sentences, self.artifact.tokenizer, self.artifact.card.max_length)
            trace = self._run(batch, plan)
            found = words.answers(trace, read, task, skips, probabilities)
            owner = [row for row, one in enumerate(read) for _ in one.seen]
        else:
            batch = self._batch(texts)
            trace = self._run(batch, plan)
            found = self._rows(trace, skips, probabilities)
            owner = list(range(len(texts)))
        damaged = {owner[unit] for unit in self._damaged(trace.logits, batch, plan)}
        return [None if row in damaged else answer for row, answer in enumerate(found)]

    def _damaged(self, logits: Tensor, batch: Batch, plan: Schedule) -> list[int]:
        """The rows of logits [U, C] that the model answers with NaN or infinite values.

        Raises PluginError: the policy does, and no exit.
        """
        finite = torch.isfinite(logits)
        if finite.all():
            return []
        fault = policys_fault(self.artifact, self._moved(batch), plan)
        if fault is not None:
            raise fault
        numbers: list[int] = (~finite.all(dim=1)).nonzero().squeeze(1).tolist()
        return numbers

    def _batch(self, texts: Sequence[Text]) -> Batch:
        first = [text if isinstance(text, str) else text[0] for text in texts]
        second = None if isinstance(texts[0], str) else [text[1] for text in texts]
        batch: Batch = {}
        for prefix, reader in self.artifact.readers.items():
            batch |= {prefix + name: rows for name, rows in _tokens(first, second, reader).items()}
        return batch

    def _run(self, batch: Batch, plan: Schedule) -> Trace:
        model = self.artifact.model
        device = model.device.type
        lowered = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if lowered else nullcontext():
            return model.run(self._moved(batch), plan)

    def _moved(self, batch: Batch) -> Batch:
        """A batch on the model's device."""
        device = self.artifact.model.device
        return {name: tensor.to(device) for name, tensor in batch.items()}

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


def load(
    folder: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    verify: bool = True,
) -> Predictor:
    """Load a trained model to answer texts with.

    Its files are compared with what they held when it was saved, a tenth of a second per 100 MB, unless `verify` is
    False. Models of exitkit 0.1.0 have nothing to compare with.

    Raises:
        UsageError: the folder is not an artifact.
        ExitkitError: one of its files is missing or damaged.
    """
    where = parsing.parse(config.Common, {"device": device, "precision": precision, "threads": threads})
    registry = installed()
    model = open_artifact(Path(folder), registry, runtime.device(where), runtime.inference_dtype(where), verify)
    return Predictor(model, registry)


def stored_plan(
    model: Artifact,
    registry: Registry,
    choice: Choice | None,
    speedup: float | None = None,
    max_exit: int | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Schedule:
    """`choose_plan` with a deadline: everybody is answered at exit `max_exit` at the latest."""
    plan = choose_plan(model, registry, choice, speedup, warn)
    if max_exit is None:
        return plan
    limits = replace(plan.limits, max_exit=max_exit)
    limits.check(plan.name, registry.policy(plan.name), model.model.shape)
    return replace(plan, limits=limits)


def choose_plan(
    model: Artifact,
    registry: Registry,
    choice: Choice | None,
    speedup: float | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Schedule:
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
            warn(f"{model.folder} has not been calibrated: the full model answers every row")
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
        if (told := _of_other_precision(model, name, stored[name])) is not None:
            warn(told)
        settings = {**_stored_settings(model, name, stored[name], speedup), **given}
    elif given or speedup is None:
        if not given and name != "fixed":  # which has nothing to calibrate
            warn(f"policy '{name}' has not been calibrated: it runs with its default settings")
        settings = given
    else:
        others = f" Calibrated: {', '.join(stored)}." if stored else ""
        raise UsageError(
            f"policy '{name}' has not been calibrated on {model.folder}, so there is no setting for {speedup:g}x."
            f"{others} Run 'exitkit calibrate {model.folder} --policy {name} --target-speedup {speedup:g}x' first."
        )
    return schedule(name, policy, settings, model.model.shape, limits)


def _of_other_precision(model: Artifact, name: str, entry: Mapping[str, Any]) -> str | None:
    """What to say where a policy was calibrated in another precision than the model runs in; older files mean fp32."""
    stored, now = entry.get("precision") or "fp32", runtime.precision_of(model.model.models[-1].stock.dtype)
    if stored == now:
        return None
    return (
        f"policy '{name}' was calibrated in {stored}, and {model.folder} runs in {now}: a few rows per thousand may "
        f"leave at other exits, and speed-ups in time are those of {stored}. Calibrate with --precision {now} to know "
        "them."
    )


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
    rows = 0
    taken: Counter[int | None] = Counter()
    good = _good_lines(lines, settings, skipped)
    with open_writer(settings.output, source=None if source == "-" else cast(Path, source)) as writer:
        for chunk in _chunks(good, settings.batch_size):
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
            raise _AfterRest(error) from None


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


def _tokens(first: list[str], second: list[str] | None, reader: Reader) -> Batch:
    """What a model reads of texts, or of pairs of them, as a padded batch; every row has a token."""
    how: dict[str, Any] = {"truncation": True, "max_length": reader.max_length, "verbose": False}
    tokens = reader.tokenizer(first, second, padding=True, return_tensors="pt", **how)
    mask = tokens["attention_mask"]
    if mask.shape[1] and (len(first) == 1 or mask.any(dim=1).all()):
        return dict(tokens)
    plain = dict(reader.tokenizer(first, second, padding=False, **how))
    with_tokens(plain, reader.tokenizer)
    return padded(plain, reader.tokenizer)


def _size(batch_size: object) -> int:
    """A batch size, checked."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}; it must be a whole number, 1 or more.")
    return int(batch_size)


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


def _checked(texts: Sequence[Text], pairs: bool, in_words: bool, column: str) -> Sequence[Text]:
    """Texts as the model takes them; words joined, unless they are to be answered. Raises UsageError for others.

    `column` is what a table's texts are probably called.
    """
    if isinstance(texts, str):
        raise UsageError("predict takes a list of texts; for a single one write predict([text]).")
    named = list(texts) if isinstance(texts, Mapping) else _columns_of(texts)
    if named is not None:
        names = [str(name) for name in named]
        name = column if column in names or not names else names[0]
        pair = " For pairs, zip(table[A], table[B])." if pairs else ""
        raise UsageError(
            f"predict takes a list of texts, not a {type(texts).__name__}: iterating it gives its column names. Give a "
            f'column of it, such as table["{name}"] (it has {", ".join(names) or "none"}).{pair}'
        )
    try:
        given = iter(texts)
    except TypeError:  # numbers, None, paths, arrays without a dimension
        raise UsageError(f"predict takes a list of texts, not {_shown(texts)}.") from None
    found: list[Text] = []
    for number, text in enumerate(given):
        strings = isinstance(text, tuple | list) and all(isinstance(part, str) for part in text)
        for part in text if strings else [text] if isinstance(text, str) else ():
            _must_be_unicode(part, number)
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


def _columns_of(table: object) -> list[object] | None:
    """The columns of a DataFrame or a Dataset; None for anything else."""
    for known in ("column_names", "columns"):
        names = getattr(table, known, None)
        if names is not None:
            return list(names)
    return None


def _must_be_unicode(text: str, number: int) -> None:
    """Raise UsageError for half a surrogate pair, which no tokenizer takes."""
    try:
        text_of(text, f"text {number}")
    except Flaw as flaw:
        raise UsageError(f"{flaw}; leave it out or put U+FFFD in its place.") from None


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
