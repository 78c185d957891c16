"""`exitkit benchmark`: what settings score on rows that chose nothing, and what they save on the clock."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.cascade import learned_texts, open_artifact
from exitkit.artifacts.plans import full_model
from exitkit.benchmarking.breakdown import Judged, breakdown
from exitkit.benchmarking.contenders import (
    PACKED,
    Contender,
    Wish,
    choosing_texts,
    contenders,
    fixed_exits,
    rows_to_choose,
    warn_of_drift,
    wished,
)
from exitkit.calibration.rows import chosen_metric
from exitkit.configuration import parsing, runtime
from exitkit.configuration.config import BenchmarkConfig
from exitkit.data.catalogue import catalogue
from exitkit.data.columns import Columns, columns_of
from exitkit.data.fingerprints import joined
from exitkit.data.remembered import remembered
from exitkit.data.sources import Origin, Rows, read, splits
from exitkit.data.splits import Taken, free, scoring_split
from exitkit.engine import layout
from exitkit.engine.cost import prices, speedups
from exitkit.engine.schedule import Schedule
from exitkit.engine.stream import Batch, own
from exitkit.errors import UsageError
from exitkit.measuring import clock
from exitkit.measuring.clock import Times
from exitkit.measuring.runs import Sample, gated_answers, run_all, score, told_of_words
from exitkit.plugins import Registry, installed
from exitkit.progress import bar

log = logging.getLogger("exitkit")

PLAIN = "plain transformers, padded"
MOST_TIMED = 1000  # batches
GRADE = "grade"  # a column of this name tells rows apart without being asked for


@dataclass(frozen=True)
class Entry:
    """One artifact with all that runs on it, scored but not timed yet."""

    model: Artifact
    rows: Rows
    contenders: Sequence[Contender]
    plans: Mapping[str, Schedule]  # contenders and fixed exits
    results: Mapping[str, Mapping[str, Any]]  # the part of a run's JSON that needs no clock
    about: Mapping[str, Any]  # the part of a run's JSON that is of the rows


@dataclass(frozen=True)
class Question:
    """What an artifact is asked: its rows, and which settings answer them."""

    model: Artifact
    rows: Rows
    wanted: Sequence[Contender | Wish]
    to_choose: Rows | None  # rows that find the settings that are missing


def benchmark(*artifacts: str | Path, settings: BenchmarkConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Score and time artifacts under policies, beside `fixed` exits, packed full depth and plain transformers.

    Several artifacts answer the same rows in turn, batch by batch, so that their milliseconds per row can be compared.

    Args:
        artifacts: folders; or give them in the settings.
        settings: the configuration, or its fields by name: `benchmark("runs/sst2", speedups="2x,3x")`.

    Returns:
        The command's JSON: `runs`, `baselines`, `environment`.

    Raises:
        UsageError: most of the rows to score were trained on or chose a setting, artifacts do not answer the same
            question, or an option is wrong.
    """
    if settings is None:
        given = {"artifacts": [Path(folder) for folder in artifacts]} if artifacts else {}
        settings = parsing.parse(BenchmarkConfig, {**fields, **given})
    parsing.require(settings, "artifacts")
    registry = installed()
    device = runtime.device(settings)
    dtype = runtime.inference_dtype(settings)
    models = [open_artifact(folder, registry, device, dtype) for folder in settings.artifacts]
    asked = []
    for model, rows in _same_question(models, settings):
        wanted = wished(model, registry, settings)
        asked.append(Question(model, rows, wanted, rows_to_choose(model, settings, wanted)))
    asked, checked = _unseen(asked, settings.max_rows)
    entries = [_entry(one, registry, settings, checked) for one in asked]
    report: dict[str, Any] = {"runs": [], "baselines": [], "environment": runtime.describe(device, dtype)}
    for batch_size in settings.batch_size:
        times, timed = _time(entries, batch_size, settings.rounds, device)
        for number, entry in enumerate(entries):
            parts = _report(entry, number, times, timed, batch_size, first=batch_size == settings.batch_size[0])
            report["runs"] += parts["runs"]
            report["baselines"] += parts["baselines"]
    return report


def scored_rows(model: Artifact, settings: BenchmarkConfig) -> Rows:
    """The rows to score: those given, else the test (or validation) split of the training data."""
    trained, source = Origin.from_dict(model.card.data), settings.data
    if source is None:
        source, columns = trained.source, trained.columns
    else:
        columns = remembered(source, columns_of(settings), trained.columns)
    split = settings.split
    if split is None and (settings.data is None or len(splits(source)) > 1):
        split = scoring_split(source, columns)
    columns = Columns(columns.text, columns.text_pair, columns.label, settings.group_column or _grade(source, columns))
    return read(source, split, columns, model.task, use_labels="optional")


def _grade(source: Any, columns: Columns) -> str | None:
    """`grade`, where every split has such a column and nothing else is read from it."""
    tables = catalogue(source).tables.values()
    free = GRADE not in (columns.text, columns.text_pair, columns.label)
    return GRADE if free and all(GRADE in table().names for table in tables) else None


def _same_question(models: Sequence[Artifact], settings: BenchmarkConfig) -> list[tuple[Artifact, Rows]]:
    """Every artifact with the rows to score. Raises UsageError when they differ in task, labels or rows."""
    first = models[0]
    for other in models[1:]:
        if (other.task.kind, sorted(other.task.labels)) != (first.task.kind, sorted(first.task.labels)):
            raise UsageError(
                f"{first.folder} and {other.folder} answer different questions: {_question(first)} and "
                f"{_question(other)}. Benchmark them one by one."
            )
    found = [(model, scored_rows(model, settings)) for model in models]
    texts = {tuple(rows.data["text"][:]) for _, rows in found}
    if len(texts) > 1:
        raise UsageError("the artifacts were trained on different data; say with --data which rows all shall answer.")
    return found


def _unseen(asked: Sequence[Question], most: int | None) -> tuple[list[Question], bool]:
    """Leave out rows that a model was trained on, or that chose a setting; the same rows are left for all artifacts.

    Returns:
        The questions with at most so many rows, and whether all is known of what the models were trained on.

    Raises UsageError: most of the rows are left out.
    """
    learned = joined(learned_texts(one.model.folder) for one in asked)
    if not learned.complete:
        log.info("not checked against training rows: not every model tells the texts that it was trained on")
    chosen = np.concatenate([choosing_texts(one.model, one.wanted, one.to_choose) for one in asked])
    taken = [
        Taken(learned.hashes, "are among the training rows"),
        Taken(chosen, "are among those that chose the settings"),
    ]
    instead = (
        "Score other rows with --data/--split, or where these only chose settings, calibrate on others with "
        "--calibration-data/--calibration-split."
    )
    left = free(asked[0].rows, taken, "to score", instead)
    if most is not None and most < len(left):
        left = left[np.sort(np.random.default_rng(0).choice(len(left), most, replace=False))]
    if len(left) == len(asked[0].rows):
        return list(asked), learned.complete
    return [replace(one, rows=one.rows.select(left.tolist())) for one in asked], learned.complete


def _question(model: Artifact) -> str:
    labels = f" of {', '.join(model.task.labels)}" if model.task.labels else ""
    return f"{model.task.kind}{labels}"


def _entry(asked: Question, registry: Registry, settings: BenchmarkConfig, checked: bool) -> Entry:
    """Score everything that takes part. `checked`: no row can have been trained on."""
    model, rows = asked.model, asked.rows
    metric = chosen_metric(settings.metric, model, rows)
    to_choose = asked.to_choose
    choosing = metric if to_choose is None else chosen_metric(settings.metric, model, to_choose)
    taking_part = contenders(model, registry, settings, choosing, asked.wanted, to_choose)
    fixed = fixed_exits(model, registry)
    price, exits = prices(model.model), model.model.shape.exits
    sample = Sample.of(rows, model)
    batches = sample.batches(max(settings.batch_size))
    full = sample.answers(run_all(model, batches, full_model(model, registry), "full model").logits)
    lengths = torch.cat([batch["attention_mask"].sum(dim=1).cpu() for batch in batches]).numpy()
    judged = Judged(rows, model.task, lengths, full, sample.truth, sample.words)
    plans = {contender.key: contender.plan for contender in taking_part} | fixed
    policies = {plan.name for plan in plans.values()}
    gated = {name: gated_answers(name, model, registry, sample, batches) for name in policies}
    results: dict[str, dict[str, Any]] = {}
    for key, plan in plans.items():
        trace = run_all(model, batches, plan, key)
        answers = sample.answers(trace.logits)
        results[key] = {
            "counted": speedups(trace, price),
            **score(model.task, metric, sample.truth, answers, full, gated[plan.name]).as_dict(),
            "exit_histogram": trace.histogram(exits),
            "breakdown": breakdown(judged, answers, trace.exit.numpy(), exits),
        }
        for contender in taking_part:
            if contender.key == key:
                warn_of_drift(contender, trace, exits)
    about = {
        "artifact": str(model.folder),
        "source": rows.origin.source,
        "split": rows.origin.split,
        "rows": len(rows),
        "checked_against_training": checked,
        **told_of_words(sample),
    }
    return Entry(model, rows, taking_part, plans, results, about)


def _time(entries: Sequence[Entry], batch_size: int, rounds: int, device: torch.device) -> tuple[Times, dict[str, Any]]:
    """Everything that runs on any of the artifacts, in turn; a batch is a number, the same rows for all."""
    batches = [Sample.of(entry.rows, entry.model).batches(batch_size) for entry in entries]
    numbers = list(range(len(batches[0])))
    if len(numbers) > MOST_TIMED:
        numbers = np.linspace(0, len(numbers) - 1, MOST_TIMED).astype(int).tolist()
    runners: dict[str, clock.Runner] = {}
    for number, entry in enumerate(entries):
        for key, plan in entry.plans.items():
            runners[_key(number, key)] = _exits(entry, batches[number], plan)
        runners[_key(number, PLAIN)] = _plain(entry, batches[number])
    with bar(f"timing batches of {batch_size}", rounds * len(numbers)) as advance:
        turn = clock.turn_of(batch_size, len(numbers))
        times = clock.interleaved(runners, numbers, rounds, device, advance, turn)
    rows = sum(batches[0][number]["input_ids"].shape[0] for number in numbers)
    return times, {"batches": len(numbers), "rows": rows, "rounds": rounds, "turn": turn}


def _key(number: int, name: str) -> str:
    return f"{number} {name}"


def _exits(entry: Entry, batches: Sequence[Batch], plan: Schedule) -> clock.Runner:
    return lambda number: entry.model.model.run(batches[number], plan)


def _plain(entry: Entry, batches: Sequence[Batch]) -> clock.Runner:
    """The stock model with its weights as transformers stores them, not as exitkit does."""
    full = len(entry.model.model.models) - 1
    stock = copy.deepcopy(entry.model.model.models[full].stock)
    layout.by_output(stock)

    def answer(number: int) -> torch.Tensor:
        with torch.inference_mode():
            batch = {name: tensor for name, tensor in own(batches[number], full).items() if name != "words"}
            logits: torch.Tensor = stock(**batch).logits
            return logits

    return answer


def _report(
    entry: Entry, number: int, times: Times, timed: Mapping[str, Any], batch_size: int, first: bool
) -> dict[str, list[dict[str, Any]]]:
    """Runs and baselines of one artifact at one batch size; breakdowns stand in those of the first size only."""
    about = entry.about
    by_key = {contender.key: contender for contender in entry.contenders}
    parts: dict[str, list[dict[str, Any]]] = {"runs": [], "baselines": []}
    for key, result in entry.results.items():
        clocked = _clocked(times, number, key, result, timed, batch_size)
        more = {"exit_histogram": result["exit_histogram"]}
        if key not in by_key:
            if first:
                more["by_group"] = result["breakdown"]["by_group"]
            parts["baselines"].append({**about, "name": key, **clocked, **more})
            continue
        contender = by_key[key]
        setting = {
            "policy": contender.plan.name,
            "target": contender.target,
            "currency": contender.currency,
            "settings": contender.plan.settings,
            "limits": contender.plan.limits.as_dict(entry.model.card.labels),
        }
        if first:
            more["breakdown"] = result["breakdown"]
        parts["runs"].append({**about, **setting, **clocked, **more})
    plain = _clocked(times, number, PLAIN, entry.results[PACKED], timed, batch_size)
    parts["baselines"].append({**about, "name": PLAIN, **plain})
    return parts


def _clocked(
    times: Times, number: int, name: str, result: Mapping[str, Any], timed: Mapping[str, Any], batch_size: int
) -> dict[str, Any]:
    """One contender's figures at one batch size."""
    key, full = _key(number, name), _key(number, PACKED)
    low, mid, high = np.percentile(times.seconds[key] * 1000, [50, 95, 99])
    seconds = float(times.per_batch(key).sum())
    scores = {k: v for k, v in result.items() if k not in ("counted", "breakdown", "exit_histogram")}
    counted = dict(result["counted"])
    if name == PLAIN:
        counted = {"layers": 1.0, "flops": None}  # it multiplies padding, which is not counted
    return {
        "batch_size": batch_size,
        "speedup": {**counted, "time": times.speedup(key, full)},
        "speedup_ci": {"time": list(times.speedup_interval(key, full))},
        **scores,
        "latency_ms": {"p50": float(low), "p95": float(mid), "p99": float(high)},
        "ms_per_row": 1000 * seconds / timed["rows"],
        "throughput": timed["rows"] / seconds,
        "timed": {"batches": timed["batches"], "rounds": timed["rounds"], "turn": timed["turn"]},
    }
