"""Which training rows are hard: those that a model answers wrong which has not been trained on them."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold

from exitkit.data.splits import label_array, texts
from exitkit.errors import UsageError
from exitkit.measuring.runs import Sample
from exitkit.recipe import Judges
from exitkit.training.outcome import exit_logits
from exitkit.training.phases import Job, Spent, run_phases

log = logging.getLogger("exitkit")


def solved(job: Job, judges: Judges, folder: Path) -> tuple[npt.NDArray[np.bool_], Spent]:
    """Train a judge for every fold of the training rows on all the others, and ask it about that fold.

    Equal texts are in one fold. Judges start as the job's model does, so it must not have been trained yet.

    Args:
        job: the training that the answers are for.
        judges: how many there are, and how they are trained.
        folder: their trainers' state, a folder per judge; finished phases are not run again.

    Returns:
        [N] whether each training row was answered right, and what it took.

    Raises:
        UsageError: fewer texts than folds.
        ExitkitError: training diverged.
    """
    found, spent = np.zeros(len(job.rows), dtype=bool), Spent()
    for number, (rest, fold) in enumerate(_folds(job, judges.folds)):
        log.info("judge %d of %d", number + 1, judges.folds)
        judge = copy.deepcopy(job.model)
        its = replace(job, model=judge, recipe=judges.recipe, rows=job.rows.select(rest.tolist()))
        phases = judges.recipe.phases(judge, job.settings.epochs)
        spent += run_phases(its, phases, folder / f"judge-{number + 1}")
        rows = job.rows.select(fold.tolist())
        sample = Sample(rows, job.tokenizer, job.max_length, job.task, job.device)
        found[fold] = sample.answers(exit_logits(judge, sample, "judging")[-1]) == label_array(rows)
    hard = int((~found).sum())
    say = log.info if 0 < hard < len(found) else log.warning
    say("%d of the %d training rows are hard: judges that have not seen them answer them wrong", hard, len(found))
    return found, spent


def _folds(job: Job, folds: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Row numbers of all other folds and of each fold."""
    _, group = np.unique([repr(text) for text in texts(job.rows)], return_inverse=True)
    if group.max() + 1 < folds:
        raise UsageError(f"recipe.folds: {folds} folds of {group.max() + 1} different texts. Give more rows.")
    return list(GroupKFold(folds, shuffle=True, random_state=job.settings.seed).split(group, groups=group))
