"""The report folder of a benchmark: benchmark.json for programs, report.md for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exitkit.artifact import write_text
from exitkit.errors import UsageError
from exitkit.report.tables import markdown


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write both files; older ones are replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot make this folder: {error.strerror}.") from None
    write_text(folder / "benchmark.json", json.dumps(result, indent=2) + "\n")
    write_text(folder / "report.md", markdown(result))
