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
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

FORMATS = ("csv", "jsonl", "parquet")
TURNS = 5


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
    """Seconds of one reading, imports left out."""
    from exitkit.data.catalogue import catalogue
    from exitkit.prediction.reading import read

    start = time.perf_counter()
    if reader == "train":
        table = catalogue(path).table("train")
        assert len(table.column("text")) == len(table.column("label"))
    else:
        assert sum(1 for _ in read(Path(path), expects_pair=False))
    return time.perf_counter() - start


def grown(path: str) -> float:
    """MB that reading lines adds to the process."""
    from exitkit.prediction.reading import read

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in read(Path(path), expects_pair=False)) == 1_000_000
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def asked(version: str, *args: str) -> float:
    """What a process with that version prints."""
    paths = os.pathsep.join([version, str(Path(version) / "plugins")])
    command = [sys.executable, __file__, *args]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main(rows: int, versions: list[str]) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, rows)
        seconds = defaultdict(list)
        for reader in ("train", "predict"):
            for format in FORMATS:
                for _ in range(TURNS):
                    for version in versions:
                        took = asked(version, "once", reader, str(folder / f"rows.{format}"))
                        seconds[reader, format, version].append(took)
                found = [min(seconds[reader, format, version]) for version in versions]
                per_second = "".join(f"{rows / best:12,.0f}" for best in found)
                print(f"{reader:8} {format:8}{per_second} rows/s   ratio {found[0] / found[1]:.2f}", flush=True)
        for version in versions:
            more = asked(version, "grown", str(folder / "lines.txt"))
            print(f"1,000,000 lines through predict's reader add {more:.1f} MB  ({version})")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["once", reader, path]:
            print(once(reader, path))
        case ["grown", path]:
            print(grown(path))
        case [rows, first, second]:
            main(int(rows), [first, second])
        case _:
            sys.exit(__doc__)
