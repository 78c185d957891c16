"""Where the time of a batch goes: the parts of the loop under a policy and at full depth, in milliseconds per batch.

Runs both in turn over a split, with a stopwatch around each part. `ideal` is what the layers would take if time were
proportional to tokens.

Usage: python docs/results/overhead.py ARTIFACT DATA SPLIT POLICY SETTINGS BATCH_SIZE

SETTINGS are JSON: '{"threshold":0.3}'.
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

from exitkit.artifacts import artifact
from exitkit.artifacts.plans import full_model
from exitkit.configuration import runtime
from exitkit.configuration.config import Common
from exitkit.data.sources import read
from exitkit.engine import contract, loop
from exitkit.engine.schedule import schedule
from exitkit.engine.trace import Trace
from exitkit.measuring.runs import Sample
from exitkit.plugins import installed

ROUNDS = 5
folder, data, split, policy, settings, size = sys.argv[1:]
device = runtime.device(Common(device="cpu", threads=1))
registry = installed()
model = artifact.read(Path(folder), registry, device)
batches = Sample.of(read(data, split, task=model.task), model).batches(int(size))[:200]
plans = {
    "exits": schedule(policy, registry.policy(policy), json.loads(settings), model.model.shape),
    "full": full_model(model, registry),
}
spent: defaultdict[tuple[str, str], float] = defaultdict(float)
running = ["exits"]


def watch(owner: object, name: str, label: str) -> None:
    """Add up the seconds of a function under a label."""
    inner = getattr(owner, name)

    def timed(*args: object, **kwargs: object) -> object:
        started = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[running[0], label] += time.perf_counter() - started

    setattr(owner, name, timed)


tokens = Trace.join([loop.run(model.model, batch, plans["exits"]) for batch in batches]).work
watch(loop, "pack", "pack")
watch(model.model.encoder, "embed", "embed")
watch(model.model.encoder, "layer", "layers")
watch(model.model, "read", "heads")
watch(contract, "decide", "decide")
watch(loop, "compact", "compact")
watch(loop, "run", "total")
for _ in range(ROUNDS):
    for batch in batches:
        for which, plan in plans.items():
            running[0] = which
            loop.run(model.model, batch, plan)

report = {
    which: {label: round(1000 * s / ROUNDS / len(batches), 3) for (w, label), s in spent.items() if w == which}
    for which in plans
}
for parts in report.values():
    parts["other"] = round(parts["total"] - sum(ms for name, ms in parts.items() if name != "total"), 3)
share = sum(tokens.queries) / (tokens.tokens * model.model.shape.layers)
report["exits"]["layers, ideal"] = round(report["full"]["layers"] * share, 3)
print(json.dumps(report, indent=2))
