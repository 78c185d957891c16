"""What all layers take when only some tokens of every sequence compute, beside what that saves in multiply-adds.

Nothing is decided, written or dropped: this is the most that halting words can save on a machine.

Usage: python docs/results/few_rows.py ARTIFACT TOKENS BATCH_SIZE
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from exitkit.artifacts import artifact
from exitkit.engine.cost import prices
from exitkit.engine.stream import Stream, pack
from exitkit.measuring import clock
from exitkit.plugins import installed

ROUNDS = 101
torch.set_num_threads(1)
tokens, size = int(sys.argv[2]), int(sys.argv[3])
model = artifact.read(Path(sys.argv[1]), installed()).model
price = prices(model).layers


@torch.inference_mode()
def layers(stream: Stream, batch: object) -> None:
    """All layers, so that the weights of none stay in the processor's nearest memory."""
    for index in range(len(price)):
        model.encoder.layer(index, stream)


ids = torch.randint(1000, 20000, (size, tokens))
with torch.inference_mode():
    embedded, stream = pack({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    stream = stream.carrying(model.encoder.embed(embedded))
runners, saved = {}, {}
for active in sorted({1, tokens // 4, tokens // 2, 3 * tokens // 4, tokens}):
    rows = torch.cat([start + torch.arange(active) for start in range(0, size * tokens, tokens)])
    some = replace(stream, active=rows, asking=(active,) * size) if active < tokens else stream
    runners[active] = partial(layers, some)
    saved[active] = sum(one.key * tokens + (one.query + one.pair * tokens) * active for one in price)
times = clock.interleaved({str(k): run for k, run in runners.items()}, [None], ROUNDS, torch.device("cpu"))
print("| active of", tokens, "tokens | multiply-adds | time | time / multiply-adds |")
print("|--:|--:|--:|--:|")
for active, cost in saved.items():
    flops, seconds = saved[tokens] / cost, times.speedup(str(active), str(tokens))
    print(f"| {active} | {flops:.2f}x | {seconds:.2f}x | {seconds / flops:.2f} |")
