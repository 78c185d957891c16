"""Settings of policies of words, run as they are: score and work on some rows. Nothing here is timed.

Usage: python docs/results/tagging_settings.py ARTIFACT DATA SPLIT POLICY:SETTINGS...

SETTINGS is a JSON mapping: 'token-window:{"window": 3, "threshold": 0.1}'.
"""

import json
import sys
from pathlib import Path

from exitkit.artifacts import artifact
from exitkit.artifacts.plans import full_model
from exitkit.data.sources import read
from exitkit.engine.cost import prices, speedups
from exitkit.engine.schedule import schedule
from exitkit.measuring.runs import Sample, run_all
from exitkit.plugins import installed

registry = installed()
model = artifact.read(Path(sys.argv[1]), registry)
sample = Sample.of(read(sys.argv[2], sys.argv[3], task=model.task), model)
batches, score = sample.batches(32), model.task.metric(model.card.metric)
assert sample.truth is not None
full = score(sample.truth, sample.answers(run_all(model, batches, full_model(model, registry), "full").logits))
print(f"| {model.card.metric}, full model {100 * full:.2f} | score | loss | flops | layers |\n|---|--:|--:|--:|--:|")
for given in sys.argv[4:]:
    name, _, settings = given.partition(":")
    plan = schedule(name, registry.policy(name), json.loads(settings or "{}"), model.model.shape)
    trace = run_all(model, batches, plan, given)
    found, work = score(sample.truth, sample.answers(trace.logits)), speedups(trace, prices(model.model))
    told = ", ".join(f"{key} {value}" for key, value in json.loads(settings or "{}").items())
    print(
        f"| {name}: {told} | {100 * found:.2f} | {100 * (full - found):.2f} | {work['flops']:.2f}x "
        f"| {work['layers']:.2f}x |"
    )
