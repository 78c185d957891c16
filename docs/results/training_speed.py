"""Samples a second: exits trained on the packed stream against a stock model on padded batches.

Both take the same unsorted batches of 32 in the same number format, forward and backward, in turn. The stock model has
one head; ours has one at every layer and its losses.

Usage: python docs/results/training_speed.py MODEL DATA_FOLDER
"""

import json
import sys

import torch
from transformers import AutoModelForSequenceClassification
from transformers import AutoTokenizer as Tokenizers

from exitkit.data.batches import batches, encode
from exitkit.data.sources import read
from exitkit.measuring import clock
from exitkit.plugins import installed
from exitkit.recipe import EveryExit
from exitkit.training.recipes.joint import Joint
from exitkit.training.start import starting_model

BATCHES, ROUNDS = 40, 3

model_name, data = sys.argv[1:]
rows = read(data, f"train[:{32 * BATCHES}]")
assert rows.task is not None
task = rows.task
start = starting_model(model_name, task, None, "mean", installed())
model, tokenizer = start.model, start.tokenizer
stock = AutoModelForSequenceClassification.from_pretrained(
    model_name, dtype=torch.float32, num_labels=model.shape.labels
)
recipe = Joint()
model.train()
stock.train()


def ours(batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward through all exits."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    seen = EveryExit(model(**inputs).logits, batch["labels"], model.exits, task)
    torch.autograd.backward(recipe.combine(recipe.losses("joint", seen)))
    model.zero_grad()


def theirs(batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward of the stock model."""
    stock(**batch).loss.backward()
    stock.zero_grad()


work = list(batches(encode(rows, Tokenizers.from_pretrained(model_name), 512), tokenizer, 32))
times = clock.interleaved({"packed, all exits": ours, "stock, padded": theirs}, work, ROUNDS, torch.device("cpu"))
result = {name: round(len(rows) / times.per_batch(name).sum(), 1) for name in times.seconds}
low, high = times.speedup_interval("packed, all exits", "stock, padded")
print(
    json.dumps(
        {
            "samples per second": result,
            "ratio": times.speedup("packed, all exits", "stock, padded"),
            "ratio_ci": [low, high],
        },
        indent=2,
    )
)
