"""How many rows a second the two readers read, of two versions of exitkit in turns; and what memory predict's needs.

Writes ROWS rows as csv, jsonl and parquet, reads each with the reader of training (texts and labels as columns) and
with that of predict (rows one by one), the versions in turns, each in a process of its own that stays. Prints the best
of seven turns, since other programs only ever make a reading slower. Then the memory that 1,000,000 lines add.

Usage: python docs/results/reading.py ROWS FOLDER_OF_ONE_VERSION FOLDER_OF_ANOTHER
"""

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMATS = ("csv", "jsonl", "parquet")
TURNS = 7


def write(folder: Path, rows: int) -> None:
    """The same rows in every format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    words = ["film", "music", "plot", "great", "dull", "caf\u00e9", "long, slow", 'so-called "end"', "the", "and"]
    texts = [" ".join(draw.choices(words, k=draw.randrange(5, 40))) for _ in range(rows)]
    labels = [draw.choice(["pos", "neg"]) for _ in range(rows)]
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(texts, labels, strict=True)
        )
    pq.write_table(pa.table({"text": texts, "label": labels}), folder / "rows.parquet")
    with (folder / "lines.txt").open("w", encoding="utf-8") as file:
        file.writelines(f"{text}\n" for text in texts[:1000] * 1000)


def once(reader: str, path: str) -> float:
    """Processor seconds of one reading."""
    from exitkit.data.catalogue import catalogue
    from exitkit.prediction.reading import read

    start = time.process_time()
    if reader == "train":
        table = catalogue(path).table("train")
        assert len(table.column("text")) == len(table.column("label"))
    else:
        assert sum(1 for _ in read(Path(path), expects_pair=False))
    return time.process_time() - start


def grown(path: str) -> float:
    """MB by which the most memory that the process had grows while it reads lines."""
    from exitkit.prediction.reading import read

    before = most_memory()
    assert sum(1 for _ in read(Path(path), expects_pair=False)) == 1_000_000
    return (most_memory() - before) / 1024


def most_memory() -> int:
    """KB; Linux."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def serve() -> None:
    """Answer requests, one a line, until there are no more."""
    for line in sys.stdin:
        what, *args = line.split()
        print(once(*args) if what == "once" else grown(*args), flush=True)


class Version:
    """A process that reads with one version of exitkit."""

    def __init__(self, folder: str) -> None:
        paths = os.pathsep.join([folder, str(Path(folder) / "plugins")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "serve"]
        self._process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def asked(self, *request: str) -> float:
        """What it measures."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*request, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


def main(rows: int, first: str, second: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, rows)
        for lines in (Version(first), Version(second)):
            print(f"1,000,000 lines through predict's reader add {lines.asked('grown', f'{folder}/lines.txt'):.1f} MB")
        versions = [Version(first), Version(second)]
        for reader in ("train", "predict"):
            for format in FORMATS:
                request = ("once", reader, str(folder / f"rows.{format}"))
                turns = [[version.asked(*request) for version in versions] for _ in range(TURNS)]
                before, after = map(min, zip(*turns, strict=True))
                print(
                    f"{reader:8} {format:8} {rows / before:12,.0f} {rows / after:12,.0f} rows/s  {before / after:.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            serve()
        case [rows, first, second]:
            main(int(rows), first, second)
        case _:
            sys.exit(__doc__)
