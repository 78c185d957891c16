"""The rows that settings are chosen on, and by which metric."""

from __future__ import annotations

import logging
from typing import Any

from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.cascade import learned_texts
from exitkit.data.columns import Columns
from exitkit.data.remembered import remembered
from exitkit.data.sources import Origin, Rows, read, reread
from exitkit.data.splits import Taken, without
from exitkit.errors import UsageError
from exitkit.tasks import needs_labels

log = logging.getLogger("exitkit")


def calibration_rows(model: Artifact, data: Any, split: str | None, columns: Columns) -> Rows:
    """The rows to choose settings on: those given, else those that `train` set aside for it.

    Rows that the model was trained on are left out: on them it is surer, and more often right, than on others.

    Raises UsageError: these are most of them.
    """
    rows = _rows_to_choose(model, data, split, columns)
    taken = Taken(learned_texts(model.folder).hashes, "are among the training rows")
    return without(rows, [taken], "to calibrate on", "Give other rows with --data and --split.")


def _rows_to_choose(model: Artifact, data: Any, split: str | None, columns: Columns) -> Rows:
    if data is None and split is None:
        if not model.card.calibration:
            raise UsageError(
                f"the models of {model.folder} set aside different rows for calibration, so that some may have been "
                "trained on what others set aside. Give rows that none has seen with --data and --split, or train all "
                "of them on the same data with the same --seed."
            )
        return reread(Origin.from_dict(model.card.calibration), model.task, model.card.calibration["hash"])
    trained = Origin.from_dict(model.card.data)
    if data is None:
        return read(trained.source, split, trained.columns, model.task, use_labels="optional")
    return read(data, split, remembered(data, columns, trained.columns), model.task, use_labels="optional")


def chosen_metric(asked: str | None, model: Artifact, rows: Rows) -> str:
    """The metric asked for, else the one of training, else agreement where there are no labels."""
    name = asked or model.card.metric
    model.task.metric(name)  # refuses what this task does not know
    if rows.task is None and needs_labels(name):
        if asked is not None:
            raise UsageError(f"--metric {asked} needs labels, and these rows have none. Use --metric agreement.")
        log.warning("the rows have no labels: the score is agreement with the full model")
        return "agreement"
    return name
