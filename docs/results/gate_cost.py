"""What asking a skip gate costs, of each kind, beside the layer that it may skip. Weights of gates are random.

Usage: python docs/results/gate_cost.py ARTIFACT
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from exitkit.artifacts import artifact
from exitkit.engine import layout
from exitkit.engine.cost import prices
from exitkit.engine.stream import Stream, pack
from exitkit.measuring import clock
from exitkit.plugins import installed

ROUNDS, TOKENS = 101, 25
torch.set_num_threads(1)
registry = installed()
model = artifact.read(Path(sys.argv[1]), registry).model
cost = prices(model).layers[0]
policy = registry.policy("skip-gate")
gates: dict[str, Any] = {kind: policy.probe(model.shape, kind=kind) for kind in ("attention", "linear")}  # type: ignore[call-arg]
for gate in gates.values():
    layout.by_input(gate.eval())


@torch.inference_mode()
def layers(stream: Stream, batch: object) -> None:
    """Every layer."""
    for index in range(model.shape.layers):
        model.encoder.layer(index, stream)


@torch.inference_mode()
def ask(kind: str, stream: Stream, batch: object) -> None:
    """The gate of every layer."""
    for layer in range(1, model.shape.layers + 1):
        (gates[kind](layer, stream.hidden, stream.bounds) < 0.5).tolist()


print("| gate | sequences of 25 tokens | multiply-adds, share of a layer's | time, share of a layer's |")
print("|---|--:|--:|--:|")
for kind in gates:
    for size in (32, 1):
        ids = torch.randint(1000, 20000, (size, TOKENS))
        with torch.inference_mode():
            tokens, stream = pack({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            stream = stream.carrying(model.encoder.embed(tokens))
        runners = {"layers": partial(layers, stream), "gates": partial(ask, kind, stream)}
        times = clock.interleaved(runners, [None], ROUNDS, torch.device("cpu"))
        whole = size * TOKENS * (cost.key + cost.query + cost.pair * TOKENS)
        asked = gates[kind].cost(1, stream.lengths)
        print(f"| {kind} | {size} | {asked / whole:.1%} | {1 / times.speedup('gates', 'layers'):.1%} |")
