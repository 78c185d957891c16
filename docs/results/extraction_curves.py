"""How far students come with and without extraction: a table of the last exit's score over training, and a picture.

Every artifact is a student of `exitkit distill`; its --extract, --epochs and --seed are read from what it says of
itself. Scores are those of metrics.json. A line is the mean over seeds, dots are seeds.

Usage: python docs/results/extraction_curves.py PICTURE.png ARTIFACT...
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure

from exitkit.report.pictures import COLOURS, MARKS

picture, folders = sys.argv[1], [Path(folder) for folder in sys.argv[2:]]
scores: defaultdict[str, defaultdict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
for folder in folders:
    said = json.loads((folder / "metrics.json").read_text())
    asked = yaml.safe_load((folder / "exitkit.yaml").read_text())["recipe"]
    scores[said["student"]["extract"]][asked["epochs"]][asked["seed"]] = 100 * said["exits"][-1]["score"]

steps = sorted({epochs for by_epochs in scores.values() for epochs in by_epochs})
print("| | " + " | ".join(f"{100 * epochs / steps[-1]:.0f} % of the steps" for epochs in steps) + " |")
print("|---|" + "--:|" * len(steps))
figure = Figure(figsize=(5.2, 3.2), layout="constrained")
axes = figure.subplots()
for (start, by_epochs), colour, mark in zip(sorted(scores.items()), COLOURS, MARKS, strict=False):
    cells = []
    for epochs in steps:
        found = list(by_epochs[epochs].values()) if epochs in by_epochs else []
        seeds = " ".join(f"{one:.1f}" for _, one in sorted(by_epochs[epochs].items())) if found else ""
        cells.append(f"{np.mean(found):.1f} ({seeds})" if found else "")
        axes.plot([100 * epochs / steps[-1]] * len(found), found, mark, color=colour, alpha=0.35, markersize=4)
    print(f"| `--extract {start}` | " + " | ".join(cells) + " |")
    there = [epochs for epochs in steps if by_epochs.get(epochs)]
    means = [np.mean(list(by_epochs[epochs].values())) for epochs in there]
    axes.plot(
        [100 * epochs / steps[-1] for epochs in there], means, f"-{mark}", color=colour, label=f"--extract {start}"
    )
axes.set_xlabel("% of the steps")
axes.set_ylabel("score of the last exit, %")
axes.grid(alpha=0.25)
axes.legend(frameon=False, loc="lower right")
figure.savefig(picture, dpi=130)
