"""The report folder of a benchmark: a page for people, its pictures, the same tables as text, JSON for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exitkit.artifact import write_text
from exitkit.errors import UsageError
from exitkit.report.tables import markdown

PICTURES = "pictures"


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write index.html, pictures/*.png, report.md and benchmark.json; older ones are replaced.

    Raises UsageError: nothing can be written there.
    """
    try:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot make this folder: {error.strerror}.") from None
    write_text(folder / "benchmark.json", json.dumps(result, indent=2) + "\n")
    write_text(folder / "report.md", markdown(result))
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells how it looks for fonts
    from exitkit.report import page, pictures

    made = page.drawn(result)
    of_runs = {
        number: pictures.parts(run)
        for number, run in enumerate(result["runs"])
        if "breakdown" in run and run["target"] != 1  # at 1x nobody leaves and nothing changes
    }
    for old in (folder / PICTURES).glob("*.png"):
        old.unlink()
    for name, _, figure in made:
        pictures.save(figure, folder / PICTURES / f"{name}.png")
    for number, figure in of_runs.items():
        name = pictures.named(result["runs"][number]).replace(" ", "-").replace(".", "_")
        pictures.save(figure, folder / PICTURES / f"parts-{number + 1}-{name}.png")
    write_text(folder / "index.html", page.page(result, made, of_runs))
