"""Pictures of a benchmark, each narrow enough for a phone: SVG for the page, and the same as files.

Every function takes runs and baselines of one batch size as they stand in benchmark.json.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from exitkit.process.outputs import write_bytes

INK = "#123456"  # stands for the page's own text colour until the SVG is in it
MUTED = "#8a8f98"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe and Ito: safe for colour-blind eyes
MARKS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "exitkit",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.parse_math": False,  # names of labels, groups and folders are somebody's, dollars in them included
}
WIDTH = 5.2  # inches


def named(run: Mapping[str, Any]) -> str:
    """What a run is called in pictures and tables."""
    target = "" if run["target"] is None else f" {run['target']:g}x"
    return f"{run['policy']}{target}"


def speed_against_score(
    runs: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]], currency: str
) -> Figure:
    """Score over speed-up in one currency: a line per policy, `fixed` exits in grey, 95 % intervals."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
        axes = figure.add_subplot()
        fixed = [one for one in baselines if one["name"].startswith("fixed") or one["name"] == "packed full depth"]
        _line(axes, fixed, currency, MUTED, "X", "fixed exits")
        for one in baselines:
            if one["name"].startswith("plain") and currency == "time":
                _line(axes, [one], currency, INK, "*", "plain transformers")
        policies = dict.fromkeys(run["policy"] for run in runs)
        for number, policy in enumerate(policies):
            mine = [run for run in runs if run["policy"] == policy]
            colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
            _line(axes, mine, currency, colour, mark, policy, above=True)
        metric = (runs or baselines)[0]["metric"]
        axes.set_xlabel(f"speed-up in {currency} (full depth = 1)")
        axes.set_ylabel(f"{metric}, %")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
        return figure


def milliseconds_against_score(
    runs: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]], batch_size: int
) -> Figure:
    """Score over milliseconds per row: one colour per artifact, so that different models can be compared."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for number, folder in enumerate(dict.fromkeys(one["artifact"] for one in [*runs, *baselines])):
            colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
            own = [one for one in runs if one["artifact"] == folder]
            fixed = [one for one in baselines if one["artifact"] == folder and not one["name"].startswith("plain")]
            plain = [one for one in baselines if one["artifact"] == folder and one["name"].startswith("plain")]
            for points, style, marker in ((fixed, ":", "x"), (own, "-", mark), (plain, "none", "*")):
                ordered = sorted(points, key=lambda one: one["ms_per_row"])
                axes.plot(
                    [one["ms_per_row"] for one in ordered],
                    [100 * one["score"] for one in ordered],
                    linestyle=style,
                    marker=marker,
                    color=colour,
                    markersize=5,
                    linewidth=1.2,
                )
            axes.plot([], [], marker=mark, color=colour, markersize=5, linewidth=1.2, label=Path(folder).name)
        for style, marker, what in ((":", "x", "fixed exits"), ("none", "*", "plain transformers")):
            axes.plot([], [], linestyle=style, marker=marker, color=MUTED, markersize=5, linewidth=1.2, label=what)
        axes.set_xscale("log")
        axes.set_xlabel(f"milliseconds per row in batches of {batch_size} (left is faster)")
        _plain_numbers(axes)
        axes.set_ylabel(f"{(runs or baselines)[0]['metric']}, %")
        axes.grid(alpha=0.25, which="both")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
        return figure


def exit_shares(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Which share of the rows left at each exit, a bar per run."""
    rows = [(named(run), run["exit_histogram"], None) for run in runs]
    return _bars([("", rows)], "rows that left at each exit, %")


def parts(run: Mapping[str, Any]) -> Figure:
    """Share by exit of the rows' classes, lengths and groups, with their scores."""
    found = run["breakdown"]
    sections = []
    for title, key in (("by class", "by_class"), ("by length", "by_length"), ("by group", "by_group")):
        rows = [
            (f"{part['name'][:26]} ({part['rows']})", part["exits"], worth(found["measure"], part["score"]))
            for part in found[key]
        ]
        if rows:
            sections.append((title, rows))
    return _bars(sections, f"rows that left at each exit, %; right: {found['measure']}")


def worth(measure: str, value: float) -> str:
    """A part's score as text: points of 100, or an error as it is."""
    return f"{value:.3f}" if measure.startswith("mean absolute") else f"{100 * value:.1f}"


def _line(
    axes: Axes,
    points: Sequence[Mapping[str, Any]],
    currency: str,
    colour: str,
    mark: str,
    label: str,
    above: bool = False,
) -> None:
    ordered = sorted((one for one in points if one["speedup"][currency]), key=lambda one: one["speedup"][currency])
    if not ordered:
        return
    x = [one["speedup"][currency] for one in ordered]
    y = [100 * one["score"] for one in ordered]
    axes.plot(x, y, color=colour, marker=mark, markersize=6, linewidth=1.5, label=label, zorder=3 if above else 2)
    low = [max(0.0, v - 100 * one["score_ci"][0]) for v, one in zip(y, ordered, strict=True)]
    high = [max(0.0, 100 * one["score_ci"][1] - v) for v, one in zip(y, ordered, strict=True)]
    sides = None
    if currency == "time":
        spans = [(v, *one["speedup_ci"]["time"]) for v, one in zip(x, ordered, strict=True)]
        sides = [[max(0.0, v - left) for v, left, _ in spans], [max(0.0, right - v) for v, _, right in spans]]
    axes.errorbar(x, y, yerr=[low, high], xerr=sides, fmt="none", ecolor=colour, alpha=0.4, linewidth=1, zorder=1)


def _plain_numbers(axes: Axes) -> None:
    """Numbers on a logarithmic axis as text: matplotlib's own powers of ten are mathematics, which is not parsed."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _bars(sections: Sequence[tuple[str, Sequence[tuple[str, Sequence[int], str | None]]]], caption: str) -> Figure:
    """Stacked bars, early exits light and late ones dark."""
    with matplotlib.rc_context(STYLE):
        count = sum(len(rows) + (1 if title else 0) for title, rows in sections)
        figure = Figure(figsize=(WIDTH, 1.1 + 0.28 * count), layout="constrained")
        axes = figure.add_subplot()
        exits = len(sections[0][1][0][1]) if sections else 1
        colours = matplotlib.colormaps["viridis_r"].resampled(max(exits, 2))
        place, ticks, names = 0.0, [], []
        for title, rows in sections:
            if title:
                axes.text(0, place, title, fontsize=9, fontweight="bold", va="center")
                place += 1
            for name, histogram, score in rows:
                left, total = 0.0, max(1, sum(histogram))
                for exit, rows_left in enumerate(histogram):
                    share = 100 * rows_left / total
                    axes.barh(place, share, left=left, height=0.78, color=colours(exit), linewidth=0)
                    if share >= 9:
                        dark = exit >= exits / 2
                        colour = "#ffffff" if dark else "#222222"
                        axes.text(
                            left + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour
                        )
                    left += share
                if score is not None:
                    axes.text(101.5, place, score, va="center", fontsize=8)
                ticks.append(place)
                names.append(name)
                place += 1
        axes.set_yticks(ticks, names, fontsize=8)
        axes.set_ylim(place - 0.4, -0.7)
        axes.set_xlim(0, 100)
        axes.set_xlabel(caption, fontsize=8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        handles = [matplotlib.patches.Patch(color=colours(exit), label=str(exit + 1)) for exit in range(exits)]
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=min(exits, 12),
            frameon=False,
            fontsize=7,
            title="exit",
            title_fontsize=7,
            handlelength=1,
            columnspacing=0.8,
        )
        return figure


def curves(found: Sequence[Mapping[str, Any]], currency: str, metric: str) -> Figure:
    """Score over speed-up of every recipe and policy: a colour per recipe, a mark per policy, thin lines for seeds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.4 * WIDTH, 4.6), layout="constrained")
        axes = figure.add_subplot()
        recipes = list(dict.fromkeys(curve["recipe"] for curve in found))
        policies = list(dict.fromkeys(curve["policy"] for curve in found))
        named_already = set()
        for curve in found:
            colour = COLOURS[recipes.index(curve["recipe"]) % len(COLOURS)]
            mark = MARKS[policies.index(curve["policy"]) % len(MARKS)]
            points = sorted(curve["points"])
            name = f"{curve['recipe']}, {curve['policy']}"
            axes.plot(
                [x for x, _ in points],
                [100 * y for _, y in points],
                color=colour,
                marker=mark,
                markersize=3,
                linewidth=0.8,
                alpha=0.7,
                linestyle=":" if curve["policy"] == "fixed exits" else "-",
                label=None if name in named_already else name,
            )
            named_already.add(name)
        axes.set_xscale("log")
        _plain_numbers(axes)
        axes.set_xlabel(f"speed-up in {currency} (full depth = 1)")
        axes.set_ylabel(f"{metric}, %")
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False, fontsize=7)
        return figure


def generations(points: Sequence[tuple[int, str, float]], named: Mapping[str, str], score: str) -> Figure:
    """What a genetic search has tried: (generation, candidate, score), some candidates with a colour and a name.

    What stands in the last generation was tried again with another seed.
    """
    again = max(generation for generation, _, _ in points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter([g + 1 for g, _, _ in points], [100 * y for _, _, y in points], color=MUTED, s=14)
        for number, (candidate, name) in enumerate(named.items()):
            own = [(g + 1, 100 * y) for g, one, y in points if one == candidate]
            axes.scatter([x for x, _ in own], [y for _, y in own], color=COLOURS[number], label=name, s=28)
        axes.set_xticks(range(1, again + 2), [*map(str, range(1, again + 1)), "other seed"])
        axes.set_xlabel("generation")
        axes.set_ylabel(score)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=7)
        return figure


def svg(figure: Figure) -> str:
    """The figure as an element to stand in a page: it scales, and its ink is the page's text colour."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file, dark on white."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def save(figure: Figure, file: Path) -> None:
    """The figure as a PNG file. Raises ExitkitError: it cannot be written."""
    write_bytes(file, png(figure))
