"""What a label is, task by task: how logits become an answer, how answers are scored, what a loss is.

A task knows nothing of models or files. `Rows` carry the task of their labels, an artifact that of its training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from exitkit.errors import UsageError, one_of
from exitkit.tasks.classification import Classification as Classification
from exitkit.tasks.multi_label import MultiLabel as MultiLabel
from exitkit.tasks.regression import Regression as Regression
from exitkit.tasks.tagging import Tagging as Tagging
from exitkit.tasks.task import Answers as Answers
from exitkit.tasks.task import Metric as Metric
from exitkit.tasks.task import Task as Task

TASKS: Mapping[str, type[Task]] = {task.kind: task for task in (Classification, Regression, MultiLabel, Tagging)}


def task(kind: str, labels: Sequence[str]) -> Task:
    """The task of a kind and its labels. Raises UsageError for an unknown kind."""
    if kind not in TASKS:
        raise UsageError(one_of("task", kind, TASKS))
    return TASKS[kind](tuple(labels))


def needs_labels(metric: str) -> bool:
    """Whether a metric compares with labels; `agreement` compares with the full model."""
    return metric != "agreement"


def balanced(labels: Answers, task: Task) -> Tensor:
    """Class weights [C] that give every class the same say: N / (C · rows of the class), as in scikit-learn.

    In multi-label, (N − rows with the class) / rows with the class. A class without a row has weight 1.

    Raises UsageError: regression has no classes.
    """
    if not task.labels:
        raise UsageError("--class-weights: regression has no classes to weigh.")
    if labels.dtype == object:
        labels = np.concatenate(labels)
    if labels.ndim == 2:
        counts = labels.sum(axis=0).astype(float)
        weights = (len(labels) - counts) / np.maximum(counts, 1)
    else:
        counts = np.bincount(labels, minlength=len(task.labels)).astype(float)
        weights = len(labels) / (len(task.labels) * np.maximum(counts, 1))
    return torch.tensor(np.where(counts > 0, weights, 1.0), dtype=torch.float32)
