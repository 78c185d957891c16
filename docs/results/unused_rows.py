"""Training rows that nobody trained on, to score models on."""

from collections.abc import Sequence

import numpy as np

from exitkit.artifacts.artifact import Artifact
from exitkit.data.sources import Rows, read
from exitkit.data.splits import training_and_calibration

UNUSED = 5000


def unused(data: str, models: Sequence[Artifact], most: int) -> Rows:
    """Rows that none of the models has seen, nor any row with the same text.

    Args:
        data: what the models were trained on.
        models: their seeds say which rows they were given.
        most: the `--max-train-samples` that all of them were trained with.
    """
    seen: set[str] = set()
    for model in models:
        used = training_and_calibration(data, seed=model.card.recipe["seed"], max_train_samples=most)
        seen |= {text for rows in (used.train, used.calibration) for text in rows.data["text"][:]}
    everything = read(data, "train", task=models[0].task)
    left = [row for row, text in enumerate(everything.data["text"][:]) if text not in seen]
    return everything.select(sorted(np.random.default_rng(0).choice(left, min(UNUSED, len(left)), replace=False)))
