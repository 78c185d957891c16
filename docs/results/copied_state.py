"""What a halted word carries upwards: its state, or the sum before the last norm (TokEE's `keep_norm_same`).

The released code copies the sum that goes into a layer's last LayerNorm and puts it through every later layer's norm;
exitkit copies the state. Here both run under the same settings of `token-window`, on the same rows.

Usage: python docs/results/copied_state.py ARTIFACT DATA SPLIT THRESHOLD...
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from exitkit.artifacts import artifact
from exitkit.data.sources import read
from exitkit.engine.attention import attend
from exitkit.engine.cost import prices, speedups
from exitkit.engine.encoders.base import split_heads
from exitkit.engine.encoders.bert import BertEncoder
from exitkit.engine.schedule import schedule
from exitkit.engine.stream import Stream, Tokens
from exitkit.measuring.runs import Sample, run_all
from exitkit.plugins import installed


class CopiesSum(BertEncoder):
    """States and sums side by side in the stream: [T, 2 d]."""

    def embed(self, tokens: Tokens) -> Tensor:
        """Below the first layer both are the embedding."""
        states = super().embed(tokens)
        return torch.cat([states, states], dim=-1)

    def layer(self, index: int, stream: Stream) -> Tensor:
        """New sums for active tokens, and this layer's norm for all."""
        block = self.base.encoder.layer[index]
        attention = block.attention.self
        states, sums = stream.hidden.chunk(2, dim=-1)
        asking = states if stream.active is None else states.index_select(0, stream.active)
        query, key, value = attention.query(asking), attention.key(states), attention.value(states)
        heads = attention.num_attention_heads
        context = attend(
            split_heads(query, heads), split_heads(key, heads), split_heads(value, heads), stream.carrying(states)
        )
        attended = block.attention.output(context, asking)
        new = block.output.dense(block.intermediate(attended)) + attended
        sums = new if stream.active is None else sums.index_copy(0, stream.active, new)
        return torch.cat([block.output.LayerNorm(sums), sums], dim=-1)

    def finished(self, stream: Stream) -> Stream:
        """Exits read states."""
        return stream.carrying(stream.hidden.chunk(2, dim=-1)[0])


registry = installed()
model = artifact.read(Path(sys.argv[1]), registry)
sample = Sample.of(read(sys.argv[2], sys.argv[3], task=model.task), model)
batches, score = sample.batches(32), model.task.metric(model.card.metric)
assert sample.truth is not None
usual, report = model.model.encoder, []
for threshold in map(float, sys.argv[4:]):
    settings = {"window": 1, "threshold": threshold, "growth": 2.0}
    plan = schedule("token-window", registry.policy("token-window"), settings, model.model.shape)
    line: dict[str, float] = {"threshold": threshold}
    for name, encoder in (("state", usual), ("sum", CopiesSum(model.model.stock))):
        model.model.encoder = encoder
        trace = run_all(model, batches, plan, name)
        line[f"{name}: score"] = round(score(sample.truth, sample.answers(trace.logits)), 4)
        line[f"{name}: flops"] = round(speedups(trace, prices(model.model))["flops"], 3)
    report.append(line)
print(json.dumps(report, indent=2))
