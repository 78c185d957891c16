"""Single exits of several artifacts on the same rows: scores over seeds, and how far each is from the first named.

A line has the mean score over its artifacts (one per seed, the same seeds in every line) with its deviation, and the
mean difference from the first line with a paired 95 % bootstrap interval over rows. Nothing here is timed.

Usage: python docs/results/exits_compared.py DATA SPLIT LINE...

LINE is NAME=EXIT:ARTIFACT,ARTIFACT…, where EXIT is a number, or `last`. SPLIT is a split, or `unused:N` for 5,000
training rows that no artifact was trained on, when all were trained on N rows of DATA by their seeds.
"""

import sys
from pathlib import Path

import numpy as np
from unused_rows import unused

from exitkit.artifacts import artifact
from exitkit.artifacts.artifact import Artifact
from exitkit.data.sources import read
from exitkit.engine.schedule import schedule
from exitkit.measuring.runs import Sample, run_all
from exitkit.plugins import installed
from exitkit.tasks.metrics import Counts, OfSums, intervals_of_sums

registry = installed()
data, split = sys.argv[1:3]
lines = {name: place.split(":", 1) for name, _, place in (line.partition("=") for line in sys.argv[3:])}
models = {
    folder: artifact.read(Path(folder), registry) for _, folders in lines.values() for folder in folders.split(",")
}
everyone = list(models.values())
kind, _, most = split.partition(":")
rows = unused(data, everyone, int(most)) if kind == "unused" else read(data, split, task=everyone[0].task)
chosen = everyone[0].task.metric(everyone[0].card.metric)
assert isinstance(chosen, OfSums), "intervals are of metrics that are functions of counts"
metric: OfSums = chosen


def counts(model: Artifact, exit: str) -> Counts:
    """The metric's sums, row by row [N, k], of one exit."""
    number = model.model.shape.exits if exit == "last" else int(exit)
    plan = schedule("fixed", registry.policy("fixed"), {"exit": number}, model.model.shape)
    sample = Sample.of(rows, model)
    answers = sample.answers(run_all(model, sample.batches(32), plan, f"exit {number}").logits)
    assert sample.truth is not None
    return metric.counts(sample.truth, answers)


def difference(*sums: Counts) -> list[Counts]:
    """Points by which the first half of the sums is ahead of the second, a mean over seeds."""
    half = len(sums) // 2
    pairs = zip(sums[:half], sums[half:], strict=True)
    return [np.mean([100 * (metric.value(mine) - metric.value(theirs)) for mine, theirs in pairs], axis=0)]


first: list[Counts] = []
print(f"| {everyone[0].card.metric}, {len(rows)} rows | score | seed by seed | ahead of the first |")
print("|---|--:|---|--:|")
for name, (exit, folders) in lines.items():
    found = [counts(models[folder], exit) for folder in folders.split(",")]
    first = first or found
    scores = [100 * float(metric.value(one.sum(axis=0))) for one in found]
    spread = f" ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    ahead = ""
    if found is not first:
        ((low, high),) = intervals_of_sums(difference, *found, *first)
        ahead = f"{float(difference(*(one.sum(axis=0) for one in (*found, *first)))[0]):.2f} ({low:.2f} to {high:.2f})"
    print(f"| {name} | {np.mean(scores):.1f}{spread} | {' '.join(f'{score:.1f}' for score in scores)} | {ahead} |")
