"""Results of a benchmark as tables for a terminal or a Markdown file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

COLUMNS = (
    "score",
    "drop",
    "agree",
    "layers",
    "flops",
    "time",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "rows/s",
    "units per exit",
)
NARROW = ("score", "drop", "layers", "flops", "time", "p50 ms", "rows/s")
"""What fits a terminal of 80 columns; the report has all."""


def rows_of(result: Mapping[str, Any]) -> list[tuple[str, Sequence[str]]]:
    """(name, cells) of every run and baseline, in the order of `COLUMNS`."""
    found: list[tuple[str, Sequence[str]]] = []
    for run in result["runs"]:
        target = "" if run["target"] is None else f" {run['target']:g}x"
        found.append((f"{run['policy']}{target}", _cells(run)))
    found += [(baseline["name"], _cells(baseline)) for baseline in result["baselines"]]
    return found


def groups(result: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The result taken apart by artifact and batch size, each with a title."""
    everything = [*result["runs"], *result["baselines"]]
    keys = dict.fromkeys((one["artifact"], one["batch_size"]) for one in everything)
    found = []
    for folder, size in keys:
        part = {
            name: [one for one in result[name] if (one["artifact"], one["batch_size"]) == (folder, size)]
            for name in ("runs", "baselines")
        }
        first = everything[0]
        title = f"{folder}, {first['metric']} on {rows_told(first)}, batches of {size}"
        found.append((title, part))
    return found


def rows_told(one: Mapping[str, Any]) -> str:
    """Which rows a run or baseline was scored on."""
    unchecked = "" if one.get("checked_against_training", True) else ", not checked against training rows"
    source = f" of {Path(one['source']).name}" if "source" in one else ""
    return f"{one['split']}{source} ({one['rows']} rows{unchecked})"


def tables(result: Mapping[str, Any]) -> list[Table]:
    """One table per artifact and batch size, for the terminal."""
    made = []
    for title, part in groups(result):
        table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("")
        for column in NARROW:
            table.add_column(column, justify="right", no_wrap=True)
        for name, cells in rows_of(part):
            by_column = dict(zip(COLUMNS, cells, strict=True))
            table.add_row(name, *(by_column[column].split(" (")[0] for column in NARROW))
        made.append(table)
    return made


def markdown(result: Mapping[str, Any]) -> str:
    """The same tables in Markdown, and what the words mean."""
    lines = ["# exitkit benchmark", ""]
    for title, part in groups(result):
        lines += [f"## {title}", "", "| |" + "|".join(COLUMNS) + "|", "|---|" + "--:|" * len(COLUMNS)]
        lines += [f"|{name}|" + "|".join(cells) + "|" for name, cells in rows_of(part)]
        lines.append("")
    environment = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    lines += [
        "Speed-up: work of the full model (packed, every layer, only the last head) ÷ work of the run, as a ratio of "
        "sums over the same rows. layers: executed; flops: multiply-adds over real tokens; time: seconds from token "
        "ids to answers, runs interleaved, medians over rounds, 95 % bootstrap interval behind ±. "
        "drop: score of the full model − score, with its paired 95 % interval in points.",
        "",
        f"Environment: {environment}.",
        "",
    ]
    return "\n".join(lines)


def _cells(one: Mapping[str, Any]) -> list[str]:
    speedup = one["speedup"]
    low, high = one["speedup_ci"]["time"]
    drop_low, drop_high = one["drop_ci"]
    flops = "–" if speedup["flops"] is None else f"{speedup['flops']:.2f}x"
    return [
        f"{100 * one['score']:.1f}",
        f"{100 * one['drop']:.1f} ({100 * drop_low:.1f}…{100 * drop_high:.1f})",
        f"{100 * one['agreement']:.1f}",
        f"{speedup['layers']:.2f}x",
        flops,
        f"{speedup['time']:.2f}x ±{(high - low) / 2:.2f}",
        f"{one['latency_ms']['p50']:.1f}",
        f"{one['latency_ms']['p95']:.1f}",
        f"{one['latency_ms']['p99']:.1f}",
        f"{one['throughput']:.0f}",
        " ".join(map(str, one.get("exit_histogram", ["–"]))),
    ]
