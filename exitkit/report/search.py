"""The picture of a search for a layer map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exitkit.distillation.layer_map import text_of
from exitkit.report import pictures

FILE = "layer_map.png"


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """Draw what `distill` tried, if it searched, into the folder of the student."""
    found = report.get("layer_map_search")
    if found is None:
        return
    tried = [(one["generation"], text_of(one["layer_map"]), one["score"]) for one in found["tried"]]
    chosen = text_of(found["layer_map"])
    names = {**found["known"], chosen: f"chosen: {chosen}"}
    score = f"{report['metric']}, mean over the exits, %"
    pictures.save(pictures.generations(tried, names, score), folder / FILE)
