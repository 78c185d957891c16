"""Full depth on rows of equal lengths, where packing saves nothing: ours against plain transformers.

Each is a program of its own, as it would be used; they answer in turn.

Usage: python docs/results/equal_lengths.py ARTIFACT THREADS
"""

import json
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from exitkit.artifacts import artifact
from exitkit.artifacts.plans import full_model
from exitkit.configuration import runtime
from exitkit.configuration.config import Common
from exitkit.engine import loop
from exitkit.engine.stream import Batch
from exitkit.measuring import clock
from exitkit.plugins import installed

SHAPES = ((32, 32), (32, 128), (1, 32))
ROWS = 512
ROUNDS = 3


def ours(folder: str, threads: int) -> Callable[[Batch], object]:
    """The full model over a packed stream."""
    device = runtime.device(Common(device="cpu", threads=threads))
    registry = installed()
    model = artifact.read(Path(folder), registry, device)
    full = full_model(model, registry)
    return lambda batch: loop.run(model.model, batch, full)


def plain(folder: str, threads: int) -> Callable[[Batch], object]:
    """The same checkpoint in transformers."""
    torch.set_num_threads(threads)
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    @torch.inference_mode()
    def answer(batch: Batch) -> object:
        return stock(**batch).logits

    return answer


def serve(make: Callable[[str, int], Callable[[Batch], object]], folder: str, threads: int, orders: Connection) -> None:
    """Answer a batch of every shape that is asked for."""
    answer = make(folder, threads)
    random = torch.Generator().manual_seed(0)
    batches = {}
    for shape in SHAPES:
        ids = torch.randint(1000, 20000, shape, generator=random)
        batches[shape] = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids),
        }  # fmt: skip
    while (shape := orders.recv()) is not None:
        answer(batches[shape])
        orders.send(None)


if __name__ == "__main__":
    folder, threads = sys.argv[1], int(sys.argv[2])
    context = get_context("spawn")
    programs: dict[str, Connection] = {}
    for make in (ours, plain):
        programs[make.__name__], theirs = context.Pipe()
        context.Process(target=serve, args=(make, folder, threads, theirs), daemon=True).start()

    def runner(program: Connection) -> clock.Runner:
        """Have a program answer and wait for it."""

        def ask(shape: object) -> None:
            program.send(shape)
            program.recv()

        return ask

    report = {}
    for shape in SHAPES:
        runners = {name: runner(program) for name, program in programs.items()}
        batches = [shape] * (ROWS // shape[0])
        turn = clock.turn_of(shape[0], len(batches))
        times = clock.interleaved(runners, batches, ROUNDS, torch.device("cpu"), turn=turn)
        low, high = times.speedup_interval("ours", "plain")
        report[f"{shape[0]} x {shape[1]} tokens"] = [round(x, 3) for x in (times.speedup("ours", "plain"), low, high)]
    print(json.dumps(report, indent=2))
