"""Does a calibrated speed-up hold on other rows of the same kind? Ten random halves of a split.

Calibrates entropy on one half of SPLIT and replays the setting on the other, for ten seeds; beside it, what the rows
that `train` set aside give. Replays only: nothing here is timed.

Usage: python docs/results/calibration_splits.py ARTIFACT DATA SPLIT
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from exitkit.artifacts import artifact
from exitkit.artifacts.plans import pick
from exitkit.calibration.rows import calibration_rows
from exitkit.calibration.search import settle
from exitkit.calibration.study import Study
from exitkit.data.columns import USUAL
from exitkit.data.sources import Rows, read
from exitkit.engine.cost import ReplayCost
from exitkit.engine.replay import replay
from exitkit.measuring.runs import score
from exitkit.plugins import installed

registry = installed()
model = artifact.read(Path(sys.argv[1]), registry)
everything = read(sys.argv[2], sys.argv[3], task=model.task)
policy = registry.policy("entropy")


def threshold_for(study: Study, target: float) -> dict[str, Any]:
    """The setting that calibrate would confirm."""
    chosen = pick(study.candidates("entropy", {}, "layers"), "layers", target)
    return settle(chosen, "entropy", policy, model.model.shape, study.evaluator("entropy")).settings


def tried(study: Study, settings: dict[str, Any]) -> dict[str, Any]:
    """A setting on the rows of a study."""
    plan = study.plan("entropy", settings)
    outcome = replay(study.recording, plan)
    answers = study.sample.answers(outcome.logits)
    scored = score(model.task, "accuracy", study.truth, answers, study.full)
    cost = ReplayCost(study.recording, study.price, plan).speedups(outcome)
    return {**cost, "loss": scored.full_score - scored.score, "loss_ci": scored.drop_ci}


def study(rows: Rows) -> Study:
    """Record rows."""
    return Study(model, registry, rows, "accuracy", 32)


halves = []
for seed in range(10):
    order = np.random.default_rng(seed).permutation(len(everything))
    middle = len(order) // 2
    halves.append(
        (study(everything.select(order[:middle].tolist())), study(everything.select(order[middle:].tolist())))
    )
aside = study(calibration_rows(model, None, None, USUAL))
whole = study(everything)

report = {}
for target in (2.0, 3.0):
    runs = [tried(other, threshold_for(half, target)) for half, other in halves]
    speedups = np.array([run["layers"] for run in runs])
    losses = np.array([run["loss"] for run in runs])
    report[f"{target:g}x"] = {
        "other half, layers: mean": round(float(speedups.mean()), 3),
        "other half, layers: smallest and largest": [round(float(speedups.min()), 3), round(float(speedups.max()), 3)],
        "other half, loss in points: mean": round(100 * float(losses.mean()), 2),
        "other half, paired 95 % interval, mean of ten": [
            round(100 * float(np.mean([run["loss_ci"][side] for run in runs])), 2) for side in (0, 1)
        ],
        "calibrated on rows set aside from train, layers on all of it": round(
            tried(whole, threshold_for(aside, target))["layers"], 3
        ),
    }
print(json.dumps(report, indent=2))
