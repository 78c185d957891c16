"""Full depth on rows of equal lengths, where packing saves nothing: ours against plain transformers.

Usage: python docs/results/equal_lengths.py ARTIFACT THREADS
"""

import copy
import json
import sys
from pathlib import Path

import torch

from exitkit import artifact, clock, layout, runtime
from exitkit.config import Common
from exitkit.loop import run
from exitkit.measure import full_model
from exitkit.plugins import installed
from exitkit.stream import Batch

folder, threads = sys.argv[1:]
device = runtime.device(Common(device="cpu", threads=int(threads)))
registry = installed()
model = artifact.read(Path(folder), registry, device)
full = full_model(model, registry)
stock = copy.deepcopy(model.model.stock)
layout.by_output(stock)  # as transformers stores weights


def plain(batch: Batch) -> None:
    """The stock model."""
    with torch.inference_mode():
        stock(**batch)


report = {}
for rows, tokens in ((32, 32), (32, 128), (1, 32)):
    ids = torch.randint(1000, 20000, (rows, tokens))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}]
    runners = {"packed": lambda batch: run(model.model, batch, full), "plain": plain}
    times = clock.interleaved(runners, batches, 41, device)
    low, high = times.speedup_interval("packed", "plain")
    report[f"{rows} x {tokens} tokens"] = [round(x, 3) for x in (times.speedup("packed", "plain"), low, high)]
print(json.dumps(report, indent=2))
