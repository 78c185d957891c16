"""One chart and one table of several benchmarks of alike artifacts: one report per seed, averaged run by run.

Every report comes from `exitkit benchmark A B C …` with the same options and artifacts of another seed in the same
order. Times are milliseconds per row, and how many times as fast as the first artifact at packed full depth.

Usage: python docs/results/chart.py PICTURE.png NAMES REPORT...

NAMES are what the artifacts are called, separated by commas; a REPORT is a report folder. The picture is of the first
batch size.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from exitkit.benchmarking.contenders import PACKED
from exitkit.report.pictures import milliseconds_against_score, named, save

picture, names, folders = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
reports = [json.loads((Path(folder) / "benchmark.json").read_text(encoding="utf-8")) for folder in folders]


def full_speed(report: dict[str, Any], batch_size: int) -> float:
    """Milliseconds per row of the first artifact's full model."""
    return next(
        float(one["ms_per_row"])
        for one in report["baselines"]
        if (one["name"], one["batch_size"]) == (PACKED, batch_size)
    )


def averaged(kind: str) -> list[dict[str, Any]]:
    """The runs or baselines of all reports, each the mean over the reports."""
    found = []
    artifacts = list(dict.fromkeys(one["artifact"] for one in reports[0]["runs"]))
    assert len(artifacts) == len(names), f"{len(names)} names for {len(artifacts)} artifacts"
    for of in zip(*(report[kind] for report in reports), strict=True):
        first, scores = of[0], [100 * one["score"] for one in of]
        size, speeds = first["batch_size"], []
        for one, report in zip(of, reports, strict=True):
            assert all(one.get(key) == first.get(key) for key in ("name", "policy", "target", "batch_size"))
            speeds.append(full_speed(report, size) / one["ms_per_row"])
        mean = {
            "artifact": names[artifacts.index(first["artifact"])],
            "score": float(np.mean(scores)) / 100,
            "spread": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
            "ms_per_row": float(np.mean([one["ms_per_row"] for one in of])),
            "faster": float(np.mean(speeds)),
            "what": first.get("name") or named(first),
        }
        found.append({**{key: first.get(key) for key in ("name", "policy", "target", "metric", "batch_size")}, **mean})
    return found


runs, baselines = averaged("runs"), averaged("baselines")
sizes = list(dict.fromkeys(one["batch_size"] for one in runs))
print(
    f"| {reports[0]['runs'][0]['metric']}, {len(reports)} seeds | |" + "".join(f" batch {size} | |" for size in sizes)
)
print("|---|--:|" + "--:|--:|" * len(sizes))
for name in names:
    own = [one for one in (*baselines, *runs) if one["artifact"] == name]
    for what in dict.fromkeys(one["what"] for one in own):
        of = [one for one in own if one["what"] == what]
        times = " | ".join(f"{one['ms_per_row']:.2f} | {one['faster']:.2f}x" for one in of)
        print(f"| {name}, {what} | {100 * of[0]['score']:.1f} ± {of[0]['spread']:.1f} | {times} |")
first, *_ = sizes
shown, fixed = ([one for one in part if one["batch_size"] == first] for part in (runs, baselines))
save(milliseconds_against_score(shown, fixed, first), picture)
