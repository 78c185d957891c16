"""Policies at targets, over several artifacts: settings chosen on some rows, run on others. Nothing here is timed.

Every policy is calibrated on the rows of CHOOSE and run on those of SCORE, artifact by artifact (one per seed). A table
has the mean score with its deviation over the artifacts, and the mean loss against the full model with the paired 95 %
bootstrap interval over rows. A policy with gates loses against the larger of the full model's and the gated score.
Beside it stands the deepest fixed exit that reaches the target within 3 %. What is done is kept in OUTPUT; the same
command goes on after an interruption.

Usage: python docs/results/targets.py DATA CHOOSE SCORE OUTPUT TARGETS POLICIES ARTIFACT...

TARGETS are speed-ups in flops: 2,3. POLICIES are separated by blanks; settings that are held follow as JSON without
blanks: 'entropy skip-gate skip-gate:{"threshold":-1}'.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from exitkit.artifacts import artifact
from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.plans import full_model, pick
from exitkit.calibration.study import Study
from exitkit.data.sources import read
from exitkit.engine.cost import prices, speedups
from exitkit.engine.limits import Limits
from exitkit.engine.schedule import Schedule, schedule
from exitkit.measuring.runs import Sample, gated_answers, run_all
from exitkit.plugins import installed
from exitkit.process import outputs
from exitkit.tasks import Answers
from exitkit.tasks.metrics import OfSums, intervals_of_sums

torch.set_num_threads(1)
Counts = npt.NDArray[np.float64]
registry = installed()
data, choose, score, output = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
targets = [float(one) for one in sys.argv[5].split(",")]
asked, folders = sys.argv[6].split(), [Path(folder) for folder in sys.argv[7:]]
output.mkdir(parents=True, exist_ok=True)


class Work:
    """One artifact on the rows to score."""

    def __init__(self, folder: Path) -> None:
        self.model: Artifact = artifact.read(folder, registry)
        self.sample = Sample.of(read(data, score, task=self.model.task), self.model)
        self.batches, self.price = self.sample.batches(32), prices(self.model.model)
        metric = self.model.task.metric(self.model.card.metric)
        assert isinstance(metric, OfSums), "intervals are of metrics that are functions of counts"
        assert self.sample.truth is not None, "scores need labels"
        self.metric, self.truth = metric, self.sample.truth
        self.full = self.sample.answers(self.run(full_model(self.model, registry)).logits)

    def run(self, plan: Schedule) -> Any:
        """The trace of all rows."""
        return run_all(self.model, self.batches, plan, plan.name)

    def told(self, plan: Schedule, against: Answers) -> dict[str, Any]:
        """What a setting gives, with the counts of its rows and of those it is compared with."""
        trace = self.run(plan)
        mine, theirs = (self.metric.counts(self.truth, one) for one in (self.sample.answers(trace.logits), against))
        done = {"settings": dict(plan.settings), **speedups(trace, self.price)}
        return {**done, "mine": mine.tolist(), "theirs": theirs.tolist()}

    def fixed(self) -> list[dict[str, Any]]:
        """Every exit by itself."""
        shape, policy = self.model.model.shape, registry.policy("fixed")
        plans = [schedule("fixed", policy, {"exit": exit}, shape) for exit in range(1, shape.exits + 1)]
        return [self.told(plan, self.full) for plan in plans]

    def policy(self, name: str, held: dict[str, Any]) -> list[dict[str, Any]]:
        """A policy at every target."""
        rows = read(data, choose, task=self.model.task)
        study = Study(self.model, registry, rows, self.model.card.metric, 32, Limits(), keeps_runs=True)
        found, told = study.candidates(name, held, "flops"), []
        gated = gated_answers(name, self.model, registry, self.sample, self.batches)
        worth = {float(self.metric(self.truth, one)): one for one in (gated, self.full) if one is not None}
        for target in targets:
            found = study.nearer(name, held, found, "flops", target)
            chosen = study.settled(pick(found, "flops", target), name)
            told.append({"target": target, **self.told(study.plan(name, chosen.settings), worth[max(worth)])})
        return told


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All of an artifact, from the file where it was kept or computed now."""
    found: dict[str, list[dict[str, Any]]] = {}
    work: Work | None = None
    for name in ["fixed", *asked]:
        digest = hashlib.sha256(f"{folder.resolve()} {data} {choose} {score} {targets} {name}".encode()).hexdigest()
        file = output / f"{folder.name}-{name.partition(':')[0]}-{digest[:10]}.json"
        if not file.exists():
            work = work or Work(folder)
            policy, _, held = name.partition(":")
            made = work.fixed() if name == "fixed" else work.policy(policy, json.loads(held or "{}"))
            outputs.write_text(file, json.dumps(made))
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def row(name: str, aim: str, of: Sequence[dict[str, Any]], metric: OfSums) -> str:
    """A line of the table, over artifacts."""
    mine, theirs = ([np.array(one[side]) for one in of] for side in ("mine", "theirs"))

    def loss(*sums: Counts) -> list[Counts]:
        half = len(sums) // 2
        values = [
            100 * (metric.value(full) - metric.value(left)) for left, full in zip(sums[:half], sums[half:], strict=True)
        ]
        return [np.mean(values, axis=0)]

    ((low, high),) = intervals_of_sums(loss, *mine, *theirs)
    scores = [100 * float(metric.value(one.sum(axis=0))) for one in mine]
    mean = float(loss(*(one.sum(axis=0) for one in (*mine, *theirs)))[0])
    spread = f" ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    speeds = " | ".join(f"{np.mean([one[currency] for one in of]):.2f}x" for currency in ("flops", "layers"))
    return f"| {name} | {aim} | {speeds} | {np.mean(scores):.1f}{spread} | {mean:.2f} ({low:.2f} to {high:.2f}) |"


everything = [results(folder) for folder in folders]
first = artifact.read(folders[0], registry)
metric = first.task.metric(first.card.metric)
assert isinstance(metric, OfSums)
print(f"| {first.card.metric}, {len(folders)} seeds | target | flops | layers | score | loss |")
print("|---|--:|--:|--:|--:|--:|")
exits = list(zip(*(one["fixed"] for one in everything), strict=True))
print(row("full model", "", exits[-1], metric))
for number, target in enumerate(targets):
    for name in asked:
        print(row(f"`{name}`", f"{target:g}x", [one[name][number] for one in everything], metric))
    reaching = [exit for exit, of in enumerate(exits) if np.mean([one["flops"] for one in of]) >= 0.97 * target]
    if reaching:
        print(row(f"always exit {reaching[-1] + 1}", f"{target:g}x", exits[reaching[-1]], metric))
for exit, of in enumerate(exits, start=1):
    print(f"exit {exit}:", " ".join(f"{100 * metric.value(np.array(one['mine']).sum(axis=0)):.1f}" for one in of))
for name in asked:
    for number, target in enumerate(targets):
        print(f"{name} at {target:g}x:", "; ".join(json.dumps(one[name][number]["settings"]) for one in everything))
