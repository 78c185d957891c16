"""What the layout of weights does to products of few rows: microseconds per product with one thread, in turn.

For the widths of all-MiniLM-L6-v2 and of BERT-base: `stored` is how torch and transformers keep weights, `by input` has
the outputs of each input side by side, `apart` is the same with inputs a cache line further apart (exitkit.layout).

Usage: python docs/results/layouts.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from exitkit import layout

ROUNDS = 9
WEIGHTS = 12  # a product finds its weights in memory, not where the product before has left them
ROWS = (8, 25, 64, 128, 167, 297, 593)
SHAPES = {"MiniLM": 384, "BERT-base": 768}


def stored(part: nn.Linear) -> None:
    """As transformers keeps it."""


def by_input(part: nn.Linear) -> None:
    """Without a gap."""
    part.weight.data = part.weight.data.t().contiguous().t()


LAYOUTS: dict[str, Callable[[nn.Linear], None]] = {"stored": stored, "by input": by_input, "apart": layout.by_input}


def made(inputs: int, outputs: int, lay: Callable[[nn.Linear], None]) -> list[nn.Linear]:
    """Some linear layers with their weights laid out."""
    parts = [nn.Linear(inputs, outputs) for _ in range(WEIGHTS)]
    for part in parts:
        lay(part)
    return parts


@torch.inference_mode()
def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    for name, width in SHAPES.items():
        for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
            parts = {label: made(inputs, outputs, lay) for label, lay in LAYOUTS.items()}
            for rows in ROWS:
                states = torch.randn(rows, inputs)
                spent: dict[str, list[float]] = {label: [] for label in LAYOUTS}
                for _ in range(ROUNDS):
                    for label, some in parts.items():
                        started = time.perf_counter()
                        for part in some:
                            part(states)
                        spent[label].append((time.perf_counter() - started) / WEIGHTS)
                found = "  ".join(f"{label} {1e6 * statistics.median(t):6.0f}" for label, t in spent.items())
                print(f"{name:10s} {inputs:4d} to {outputs:4d}  {rows:4d} rows  {found}", flush=True)


if __name__ == "__main__":
    main()
