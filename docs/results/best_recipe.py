"""What 2x and 3x cost a recipe: three seeds, on halves of a split and on training rows that nobody trained on.

Entropy, counted in layers. On SPLIT a random half chooses the setting and the other is scored, both ways, so that every
row is scored once. On training rows the setting comes from the rows that `train` set aside, and 5,000 rows that were
neither trained on nor set aside are scored. The loss of a row is averaged over the seeds; its interval is a bootstrap
over rows. Both sets are joined in two ways: row by row, so that the larger counts more, and as the mean of the two
losses, whose interval draws from each set by itself. Replays only: nothing here is timed.

Usage: python docs/results/best_recipe.py DATA SPLIT MAX_TRAIN_SAMPLES common|per-exit ARTIFACT...

`common`: one threshold for all exits; `per-exit`: what `calibrate --per-exit` finds.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap
from unused_rows import unused

from exitkit.artifacts import artifact
from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.plans import pick
from exitkit.calibration.rows import calibration_rows
from exitkit.calibration.study import Study
from exitkit.data.columns import USUAL
from exitkit.data.sources import Rows, read
from exitkit.engine.cost import ReplayCost
from exitkit.engine.replay import replay
from exitkit.plugins import installed
from exitkit.tasks.metrics import interval

TARGETS = (2.0, 3.0)
Losses = npt.NDArray[np.float64]
registry = installed()
data, split, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
per_exit, folders = sys.argv[4] == "per-exit", sys.argv[5:]
assert per_exit or sys.argv[4] == "common", __doc__


def study(model: Artifact, rows: Rows) -> Study:
    """Record rows."""
    return Study(model, registry, rows, "accuracy", 32)


def losses(chosen: Study, scored: Study, target: float) -> tuple[Losses, float]:
    """Loss of every scored row (1, 0 or −1) against the full model, and the speed-up in layers."""
    found = chosen.candidates("entropy", {}, "layers")
    if per_exit:
        found = chosen.per_exit("entropy", found, "layers", target)
    picked = chosen.settled(pick(found, "layers", target), "entropy")
    plan = scored.plan("entropy", picked.settings)
    outcome = replay(scored.recording, plan)
    right, full = (answers == scored.truth for answers in (scored.sample.answers(outcome.logits), scored.full))
    cost = ReplayCost(scored.recording, scored.price, plan)
    return full.astype(float) - right.astype(float), cost.speedups(outcome)["layers"]


def halves(model: Artifact, target: float) -> tuple[Losses, float]:
    """Every row of the split scored once, by a setting that the other half chose."""
    rows = read(data, split, task=model.task)
    order = np.random.default_rng(0).permutation(len(rows))
    one, other = (np.sort(half).tolist() for half in np.array_split(order, 2))
    first, second = study(model, rows.select(one)), study(model, rows.select(other))
    found = np.zeros(len(rows))
    found[other], fast = losses(first, second, target)
    found[one], slow = losses(second, first, target)
    return found, (fast + slow) / 2


def joined(one: tuple[Losses, float], other: tuple[Losses, float]) -> tuple[Losses, float]:
    """The losses of all rows of two sets, and the speed-up over all of them."""
    work = sum(len(rows) / speedup for rows, speedup in (one, other))
    rows = np.concatenate([one[0], other[0]])
    return rows, len(rows) / work


def balanced(sets: Sequence[Sequence[tuple[Losses, float]]]) -> dict[str, Any]:
    """The mean of what several sets lose, each counting alike, and its interval in points."""
    of_rows = [np.mean([one for one, _ in found], axis=0) for found in sets]
    by_seed = list(zip(*sets, strict=True))

    def mean(*drawn: Losses, axis: int = -1) -> Losses:
        loss: Losses = np.mean([one.mean(axis=axis) for one in drawn], axis=0)
        return loss

    low, high = bootstrap(of_rows, mean, n_resamples=2000, batch=100, method="percentile", rng=0).confidence_interval
    return {
        "loss": round(100 * float(mean(*of_rows)), 2),
        "interval": [round(100 * float(end), 2) for end in (low, high)],
        "seed by seed": [round(100 * float(mean(*(one for one, _ in seed))), 2) for seed in by_seed],
        "layers": [round(len(sets) / sum(1 / speedup for _, speedup in seed), 2) for seed in by_seed],
        "rows": sum(map(len, of_rows)),
    }


def told(found: Sequence[tuple[Losses, float]]) -> dict[str, Any]:
    """Means and intervals in points."""
    mean = np.mean([one for one, _ in found], axis=0)
    return {
        "loss": round(100 * float(mean.mean()), 2),
        "interval": [round(100 * end, 2) for end in interval(lambda rows: float(mean[rows].mean()), len(mean))],
        "seed by seed": [round(100 * float(one.mean()), 2) for one, _ in found],
        "layers": [round(speedup, 2) for _, speedup in found],
        "rows": len(mean),
    }


models = [artifact.read(Path(folder), registry) for folder in folders]
rows = unused(data, models, most)
report: dict[str, Any] = {}
aside = [(study(model, calibration_rows(model, None, None, USUAL)), study(model, rows)) for model in models]
for target in TARGETS:
    of_split = [halves(model, target) for model in models]
    of_unused = [losses(chosen, scored, target) for chosen, scored in aside]
    report[f"{target:g}x"] = {
        split: told(of_split),
        "unused training rows": told(of_unused),
        "both, row by row": told([joined(*pair) for pair in zip(of_split, of_unused, strict=True)]),
        "both, half each": balanced([of_split, of_unused]),
    }
report["full model"] = {
    split: [round(100 * study(model, read(data, split, task=model.task)).full_score, 1) for model in models],
    "unused training rows": [round(100 * scored.full_score, 1) for _, scored in aside],
}
print(json.dumps(report, indent=2))
