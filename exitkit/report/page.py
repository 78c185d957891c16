"""The report as one page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from exitkit.report import pictures
from exitkit.report.tables import COLUMNS, groups, rows_of, rows_told

Picture = tuple[str, str, Figure]
"""File name without suffix, caption, figure."""


def drawn(result: Mapping[str, Any]) -> list[Picture]:
    """The pictures of a benchmark: speed against score, and where rows leave."""
    found: list[Picture] = []
    everything = [*result["runs"], *result["baselines"]]
    folders = dict.fromkeys(one["artifact"] for one in everything)
    sizes = dict.fromkeys(one["batch_size"] for one in everything)
    for size in sizes:
        runs, baselines = ([one for one in result[kind] if one["batch_size"] == size] for kind in ("runs", "baselines"))
        if len(folders) > 1:
            figure = pictures.milliseconds_against_score(runs, baselines, size)
            found.append(
                (f"milliseconds-batch-{size}", "Models in milliseconds per row; up and left is better.", figure)
            )
    for number, folder in enumerate(folders):
        runs, baselines = ([one for one in result[kind] if one["artifact"] == folder] for kind in ("runs", "baselines"))
        tail, of = (f"-{number + 1}", f"{Path(folder).name}: ") if len(folders) > 1 else ("", "")
        for size in sizes:
            now, base = ([one for one in kind if one["batch_size"] == size] for kind in (runs, baselines))
            figure = pictures.speed_against_score(now, base, "time")
            caption = f"{of}seconds in batches of {size}; up and right is better. Bars are 95 % intervals."
            found.append((f"time-batch-{size}{tail}", caption, figure))
        first = next(iter(sizes))
        now, base = ([one for one in kind if one["batch_size"] == first] for kind in (runs, baselines))
        caption = f"{of}multiply-adds over real tokens, heads included."
        found.append((f"flops{tail}", caption, pictures.speed_against_score(now, base, "flops")))
        if now:
            caption = f"{of}where rows leave. Light is early."
            found.append((f"exits{tail}", caption, pictures.exit_shares(now)))
    return found


def page(result: Mapping[str, Any], made: Sequence[Picture], of_runs: Mapping[int, Figure]) -> str:
    """The HTML page.

    Args:
        result: the JSON of benchmark.
        made: what `drawn` gives.
        of_runs: a picture of the parts of each run that has a breakdown, by its number in `result["runs"]`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exitkit", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    everything = [*result["runs"], *result["baselines"]]
    first = everything[0]
    names = ", ".join(Path(folder).name for folder in dict.fromkeys(one["artifact"] for one in everything))
    return environment.get_template("page.html.j2").render(
        title=f"{names}: early exit, measured",
        about=f"{first['metric']} on {rows_told(first)}",
        cards=[_card(run) for run in result["runs"] if run["target"] != 1 and "breakdown" in run],
        pictures=[{"svg": Markup(pictures.svg(figure)), "caption": caption} for _, caption, figure in made],
        tables=[{"title": title, "rows": rows_of(part)} for title, part in groups(result)],
        columns=COLUMNS,
        runs=[_run(result["runs"][number], figure) for number, figure in of_runs.items()],
        rounds=first["timed"]["rounds"],
        environment=", ".join(f"{key} {value}" for key, value in result["environment"].items()),
    )


def _card(run: Mapping[str, Any]) -> dict[str, str]:
    low, high = (100 * edge for edge in run["drop_ci"])
    loses = "loses" if run["drop"] >= 0 else "gains"
    return {
        "name": f"{Path(run['artifact']).name}: {pictures.named(run)}",
        "speed": f"{run['speedup']['time']:.2f}x faster",
        "cost": f"{loses} {abs(100 * run['drop']):.1f} points of {run['metric']}",
        "more": f"{low:.1f} to {high:.1f} (95 %), {100 * run['agreement']:.1f} % agree, batches of {run['batch_size']}",
    }


def _run(run: Mapping[str, Any], figure: Figure) -> dict[str, Any]:
    found = run["breakdown"]
    changed = found["changed"]
    said = f"{changed['rows']} of {run['rows']} answers differ from the full model's"
    if changed["became_wrong"] is not None:
        said += f": {changed['became_wrong']} became wrong, {changed['became_right']} became right"
    if len(changed["shown"]) < changed["rows"]:
        said += f"; {len(changed['shown'])} of them, spread evenly, are shown"
    return {
        "name": f"{Path(run['artifact']).name}: {pictures.named(run)}",
        "svg": Markup(pictures.svg(figure)),
        "caption": "Rows in brackets. Light is early.",
        "measure": found["measure"],
        "by_exit": [
            {
                "name": part["name"],
                "rows": part["rows"],
                "score": pictures.worth(found["measure"], part["score"]),
                "full": pictures.worth(found["measure"], part["full_score"]),
            }
            for part in found["by_exit"]
        ],
        "changed": said + ".",
        "shown": [_row(row) for row in changed["shown"]],
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    kind = ""
    if row["truth"] is not None:
        kind = "better" if row["answer"] == row["truth"] else "worse" if row["full"] == row["truth"] else ""
    text = row["text"] if "text_pair" not in row else f"{row['text']} ⟷ {row['text_pair']}"
    return {**row, "text": text if len(text) <= 600 else text[:600] + " …", "kind": kind, "truth": row["truth"] or "–"}
