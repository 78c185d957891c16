"""Answers for new texts: `exitkit.load(DIR).predict([...])`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from exitkit.artifacts import plans
from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.cascade import open_artifact
from exitkit.configuration import config, parsing, runtime
from exitkit.configuration.config import PredictConfig
from exitkit.data.batches import Reader, padded, with_tokens
from exitkit.engine.schedule import Schedule
from exitkit.engine.stream import Batch
from exitkit.engine.trace import Trace
from exitkit.errors import ExitkitError, UsageError
from exitkit.measuring.runs import policys_fault
from exitkit.plugins import Registry, installed
from exitkit.policy import ExitPolicy
from exitkit.prediction import words
from exitkit.prediction.texts import Text, checked, chunks, size_of
from exitkit.tasks import Tagging

log = logging.getLogger("exitkit")

Answer = dict[str, Any]
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
        for chunk in chunks(iter(self._checked(texts)), size_of(batch_size)):
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
        task, rows = self.artifact.task, 0
        found = []
        for chunk in chunks(iter(self._checked(texts)), size_of(batch_size)):
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
        return checked(texts, bool(columns.get("text_pair")), tagging, columns.get("text") or "text")

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
        return plans.plan(self.artifact, self.registry, choice, wanted, max_exit, self._warn)

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
