"""What the layout of weights does to products of few rows: microseconds per product with one thread, as a table.

For the widths of all-MiniLM-L6-v2 and of BERT-base: `stored` is how torch and transformers keep weights, `by input` has
the outputs of each input side by side, `a line apart` is so, inputs a cache line further apart, as exitkit has it.
Contenders work in an order drawn for every round; a product finds its weights where a dozen others have left them.

Usage: python docs/results/layouts.py
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from exitkit.engine import layout
from exitkit.measuring import clock

ROUNDS = 15
WEIGHTS = 12
ROWS = (8, 25, 64, 167, 297, 593)
WIDTHS = {"MiniLM": 384, "BERT-base": 768}


def stored(part: nn.Linear) -> None:
    """As transformers keeps it."""


def by_input(part: nn.Linear) -> None:
    """Without a gap."""
    part.weight.data = part.weight.data.t().contiguous().t()


LAYOUTS: dict[str, Callable[[nn.Linear], None]] = {
    "stored": stored,
    "by input": by_input,
    "a line apart": layout.by_input,
}


def laid(inputs: int, outputs: int, lay: Callable[[nn.Linear], None]) -> list[nn.Linear]:
    """Some linear layers with their weights laid out."""
    parts = [nn.Linear(inputs, outputs) for _ in range(WEIGHTS)]
    for part in parts:
        lay(part)
    return parts


def products(parts: list[nn.Linear], states: Tensor) -> None:
    """One after the other."""
    for part in parts:
        part(states)


@torch.inference_mode()
def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print("| | |", *(f"{rows} rows |" for rows in ROWS))
    print("|---|---|", *("--:|" for _ in ROWS), sep="")
    for name, width in WIDTHS.items():
        for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
            parts = {label: laid(inputs, outputs, lay) for label, lay in LAYOUTS.items()}
            spent: dict[str, list[float]] = {label: [] for label in LAYOUTS}
            for rows in ROWS:
                runners = {label: partial(products, some) for label, some in parts.items()}
                times = clock.interleaved(runners, [torch.randn(rows, inputs)], ROUNDS, torch.device("cpu"))
                for label in LAYOUTS:
                    spent[label].append(1e6 * float(times.per_batch(label)[0]) / WEIGHTS)
            for label, found in spent.items():
                shown = f"{name}, {inputs:,} to {outputs:,}" if label == "stored" else ""
                print(f"| {shown} | {label} |", *(f"{t:,.0f} |" for t in found), flush=True)


if __name__ == "__main__":
    main()
