"""`exitkit compare`: every recipe with every policy, several seeds, one table; it goes on where it stopped."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from exitkit.artifacts import artifact
from exitkit.artifacts.artifact import Artifact
from exitkit.artifacts.plans import REACHED, pick
from exitkit.calibration import search
from exitkit.calibration.rows import calibration_rows, chosen_metric
from exitkit.calibration.search import Candidate
from exitkit.calibration.study import Study
from exitkit.configuration import config, parsing, runtime
from exitkit.configuration.config import CompareConfig
from exitkit.data import fingerprints
from exitkit.data.columns import columns_of
from exitkit.data.fingerprints import Fingerprints, hashed
from exitkit.data.sources import Rows, read, splits
from exitkit.data.splits import Taken, scoring_split, texts, training_and_calibration, without
from exitkit.engine.cost import ReplayCost, prices
from exitkit.engine.replay import Recording, record, replay
from exitkit.engine.schedule import Schedule, rewrites, schedule
from exitkit.errors import UsageError
from exitkit.measuring.runs import Sample, reference_of
from exitkit.plugins import Registry, installed
from exitkit.process import outputs
from exitkit.process.outputs import write_text
from exitkit.tasks import Task
from exitkit.training.options import build
from exitkit.training.start import head_of, open_checkpoint
from exitkit.training.train import train

log = logging.getLogger("exitkit")

FIXED = "fixed"
RUN = "run.json"
FREE = {"output", "device", "threads", "keep_models"}
OTHERS = "Name other rows with {}, or give data with more splits."

Fold = Mapping[str, Any]
"""What was found on some scored rows: `rows`, `exits` and `policies`."""


def compare(settings: CompareConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Train each recipe once per seed, calibrate each policy on calibration rows, score it on others.

    Everything that is done lies in `output`, one file per recipe and seed: an interrupted comparison goes on there.

    Args:
        settings: the configuration, or its fields by name.

    Returns:
        `table`: a row per recipe, policy and target with the mean and the standard deviation over seeds of score, drop
        and speed-up reached; `areas`: the area under each curve; `curves`; `skipped`: pairs that do not fit, and why.

    Raises:
        UsageError: an option is wrong, or the folder holds another comparison.
    """
    settings = settings or parsing.parse(CompareConfig, fields)
    parsing.require(settings, "model", "data", "output", "recipes", "policies")
    assert settings.output is not None
    registry = installed()
    for name in settings.recipes:
        build("recipe", config.Choice(name=[name], **settings.options.get(name, {})), registry.recipe)
    for name in settings.policies:
        if registry.policy(name).rewrites:
            raise UsageError(
                f"--policies: '{name}' changes later states, so its curve cannot be replayed; compare it with "
                "'exitkit benchmark'."
            )
    folder = outputs.target(settings.output)
    with outputs.held(folder, "compare"):
        return _compare(settings, folder, registry)


def _compare(settings: CompareConfig, folder: Path, registry: Registry) -> dict[str, Any]:
    """Compare in a folder that is held."""
    trained_on = _trained_on(settings, registry)
    _same_comparison(folder, settings)
    found = []
    for recipe, seed in _jobs(settings):
        file = folder / "results" / f"{recipe}-{seed}.json"
        if file.exists():
            log.info("%s with seed %d is done already", recipe, seed)
            found.append(json.loads(file.read_text(encoding="utf-8")))
            continue
        model = folder / "models" / f"{recipe}-{seed}"
        _trained(model, recipe, seed, settings)
        result = _scored(model, recipe, seed, settings, registry, trained_on)
        write_text(file, json.dumps(result) + "\n")
        found.append(result)
        if not settings.keep_models:
            shutil.rmtree(model)
    return {**summary(found, settings), "checked_against_training": trained_on.complete}


def _jobs(settings: CompareConfig) -> Iterator[tuple[str, int]]:
    """Seed by seed, so that an interrupted comparison has whole rounds."""
    for seed in range(settings.seeds):
        for recipe in settings.recipes:
            yield recipe, settings.seed + seed


def _same_comparison(folder: Path, settings: CompareConfig) -> None:
    """Write down what is compared, or check that the folder holds the same."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file; name a folder.")
    plain = settings.model_dump(mode="json", exclude={*FREE, "seeds", "recipes", "options"})  # more may be added
    plain["options"] = {name: settings.options.get(name, {}) for name in sorted(settings.recipes)}
    file = folder / RUN
    if not file.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"--output {folder} holds files that are not a comparison; name another folder.")
        try:
            (folder / "results").mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"--output {folder}: cannot write there: {error.strerror}.") from None
        write_text(file, json.dumps(plain) + "\n")
        return
    before = _run_of(file)
    options, known = plain.pop("options"), before.pop("options", {})
    differing = [key for key in plain if plain[key] != before.get(key)]
    for recipe in sorted({name.rpartition("-")[0] for name in _done(folder)} & options.keys()):
        if options[recipe] != known.get(recipe, {}):
            raise UsageError(
                f"--output {folder} holds results of recipe '{recipe}' with other options (options.{recipe}); name "
                "another folder."
            )
    if differing:
        names = ", ".join(parsing.option(key) for key in differing)
        raise UsageError(f"--output {folder} holds a comparison with other settings ({names}); name another folder.")
    write_text(file, json.dumps({**plain, "options": {**known, **options}}) + "\n")


def _run_of(file: Path) -> dict[str, Any]:
    """What run.json says. Raises UsageError: it is not a comparison's."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict) or "policies" not in before:
        raise UsageError(f"--output {file.parent} holds a {RUN} that is not a comparison's; name another folder.")
    return before


def _trained(model: Path, recipe: str, seed: int, settings: CompareConfig) -> None:
    if artifact.is_artifact(model):
        return
    log.info("training %s with seed %d", recipe, seed)
    shared = ("model", "data", "epochs", "exits", "pooling", "task", "max_train_samples", "max_length", "training")
    columns = ("text_column", "pair_column", "label_column")
    given = {name: getattr(settings, name) for name in (*shared, *columns, "metric", "device", "precision", "threads")}
    train(
        recipe={"name": recipe, **settings.options.get(recipe, {})},
        seed=seed,
        output=model,
        resume=model.with_name(model.name + ".partial").exists(),
        **given,
    )


def _answers(model: str, registry: Registry) -> bool:
    """Whether `--model` is a checkpoint that has learned to answer, nobody knows from which texts."""
    return not model.startswith("demo:") and head_of(open_checkpoint(model, registry=registry)[0]) is not None


def _trained_on(settings: CompareConfig, registry: Registry) -> Fingerprints:
    """The texts that `--model` has learned from or that some seed trains on, once it is clear that there are others to
    choose settings on and to score.

    Raises UsageError: rows cannot be read, most of those to score or to choose on would have to be left out, or no
    policy can be compared on them.
    """
    columns, model = columns_of(settings), str(settings.model)
    found = [fingerprints.of_source(model, artifact.is_artifact(Path(model)) or _answers(model, registry))]
    for seed in sorted({seed for _, seed in _jobs(settings)}):
        data = training_and_calibration(settings.data, columns, seed, settings.max_train_samples, settings.task)
        found.append(fingerprints.of_texts(texts(data.train)))
    if all(rewrites(registry.policy(name), data.task.kind) for name in settings.policies):
        raise UsageError(
            f"--policies {','.join(settings.policies)}: in tagging words leave one by one and change what later layers "
            "read, so that curves cannot be replayed. Compare --policies sentence; the others with 'exitkit benchmark'."
        )
    trained_on = fingerprints.joined(found)
    rows = _scored_rows(settings, data.task, trained_on)
    if not settings.halves:
        split = settings.calibration_split
        _rows_to_choose(data.calibration if split is None else read(settings.data, split, columns, data.task), rows)
    return trained_on


def _done(folder: Path) -> Iterator[str]:
    """Results there are, as RECIPE-SEED."""
    return (file.stem for file in (folder / "results").glob("*.json"))


def _scored(
    folder: Path,
    recipe: str,
    seed: int,
    settings: CompareConfig,
    registry: Registry,
    trained_on: Fingerprints,
) -> dict[str, Any]:
    """What every policy reaches on rows that chose nothing."""
    model = artifact.read(folder, registry, runtime.device(settings), runtime.inference_dtype(settings))
    refused = {name: _unfit(name, registry, model) for name in settings.policies}
    fitting = [name for name, reason in refused.items() if not reason]
    folds = []
    for chosen, rows in _folds(model, settings, trained_on):
        metric = chosen_metric(settings.metric, model, chosen)
        folds.append(_fold(model, chosen, rows, metric, fitting, settings, registry))
    return {
        "recipe": recipe,
        "seed": seed,
        "metric": metric,
        "rows": sum(fold["rows"] for fold in folds),
        "folds": folds,
        "skipped": {name: reason for name, reason in refused.items() if reason},
    }


def _folds(model: Artifact, settings: CompareConfig, trained_on: Fingerprints) -> list[tuple[Rows, Rows]]:
    """Rows that choose settings, and the rows that these are scored on."""
    rows = _scored_rows(settings, model.task, trained_on)
    if settings.halves:
        order = np.random.default_rng(settings.seed).permutation(len(rows))  # the same halves for all models
        one, other = (rows.select(np.sort(half).tolist()) for half in np.array_split(order, 2))
        return [(one, other), (other, one)]
    data = settings.data if settings.calibration_split else None
    chosen = calibration_rows(model, data, settings.calibration_split, columns_of(settings))
    return [(_rows_to_choose(chosen, rows), rows)]


def _fold(
    model: Artifact,
    chosen: Rows,
    rows: Rows,
    metric: str,
    policies: Sequence[str],
    settings: CompareConfig,
    registry: Registry,
) -> dict[str, Any]:
    """Every policy, its settings chosen on some rows and scored on others."""
    study = Study(model, registry, chosen, metric, batch_size=32)
    readers = [name for name in model.model.probes if "probe" in registry.policy(name).reads]
    sample = Sample.of(rows, model)
    scorer = Scorer(model, sample, metric, record(model.model, sample.batches(32), readers))
    found: dict[str, Any] = {"rows": len(rows), "exits": [scorer.of(plan) for plan in _fixed(model, registry)]}
    found["policies"] = {}
    for name in policies:
        candidates = study.candidates(name, {}, settings.currency)
        frontier = search.frontier(candidates, settings.currency)
        found["policies"][name] = {
            "targets": [_at(scorer, study, name, candidates, target, settings) for target in settings.speedups],
            "curve": [scorer.of(study.plan(name, one.settings)) for one in frontier],
        }
    return found


def _unfit(name: str, registry: Registry, model: Artifact) -> str | None:
    """Why a policy's curve cannot be had from a model; None when it can."""
    policy, shape = registry.policy(name), model.model.shape
    if reason := policy.refuses(shape):
        return reason
    if "probe" in policy.reads and name not in model.model.probes:
        return f"needs a probe, which recipe '{policy.trained_by}' trains unless its options leave that out"
    if rewrites(policy, shape.task):
        return "words that leave one by one change later states, so its curve cannot be replayed; use benchmark"
    return None


def _fixed(model: Artifact, registry: Registry) -> list[Schedule]:
    shape, policy = model.model.shape, registry.policy(FIXED)
    return [schedule(FIXED, policy, {"exit": exit}, shape) for exit in range(1, shape.exits + 1)]


def _at(
    scorer: Scorer, study: Study, name: str, candidates: Sequence[Candidate], target: float, settings: CompareConfig
) -> dict[str, Any]:
    """A policy at a target chosen on calibration rows, scored on others."""
    picked = study.settled(pick(candidates, settings.currency, target), name)
    found = scorer.of(study.plan(name, picked.settings))
    return {"target": target, "reached": picked.speedup[settings.currency] >= REACHED * target, **found}


class Scorer:
    """Replays settings on recorded rows that chose nothing."""

    def __init__(self, model: Artifact, sample: Sample, metric: str, recording: Recording) -> None:
        self.sample, self.recording = sample, recording
        full = sample.answers(recording.logits[-1])
        self._score = partial(model.task.metric(metric), reference_of(metric, sample.truth, full))
        self.full_score = self._score(full)
        self.price = prices(model.model)

    def of(self, plan: Schedule) -> dict[str, Any]:
        """Speed-ups, score and drop of a setting."""
        outcome = replay(self.recording, plan)
        cost = ReplayCost(self.recording, self.price, plan)
        score = self._score(self.sample.answers(outcome.logits))
        return {
            "settings": plan.settings,
            "speedup": cost.speedups(outcome),
            "score": score,
            "full_score": self.full_score,
            "drop": self.full_score - score,
        }


def _scored_rows(settings: CompareConfig, task: Task, trained_on: Fingerprints) -> Rows:
    """The rows to score, without those that were trained on."""
    columns = columns_of(settings)
    split = settings.split or (scoring_split(settings.data, columns) if len(splits(settings.data)) > 1 else None)
    rows = read(settings.data, split, columns, task)
    return without(
        rows, [Taken(trained_on.hashes, "are among the training rows")], "to score", OTHERS.format("--split")
    )


def _rows_to_choose(chosen: Rows, scored: Rows) -> Rows:
    """Calibration rows without those that are scored."""
    taken = Taken(hashed(texts(scored)), "are among those to score")
    return without(chosen, [taken], "to calibrate on", OTHERS.format("--calibration-split"))


def summary(found: Sequence[Mapping[str, Any]], settings: CompareConfig) -> dict[str, Any]:
    """Means and standard deviations over seeds, and areas under curves. A seed's figure is the mean of its folds."""
    currency, most = settings.currency, max(settings.speedups)
    table, areas, exits = [], [], []
    for recipe in settings.recipes:
        mine = [one["folds"] for one in found if one["recipe"] == recipe]
        each = range(len(mine[0][0]["exits"]))
        exits.append({"recipe": recipe, "scores": [_over(mine, "score", _place("exits", e)) for e in each]})
        areas.append({"recipe": recipe, "policy": "fixed exits", **_area(mine, _place("exits"), currency, most)})
        for policy in settings.policies:
            if any(policy not in fold["policies"] for folds in mine for fold in folds):
                continue
            curve = _area(mine, _place("policies", policy, "curve"), currency, most)
            areas.append({"recipe": recipe, "policy": policy, **curve})
            for number, target in enumerate(settings.speedups):
                point = _place("policies", policy, "targets", number)
                table.append(
                    {
                        "recipe": recipe,
                        "policy": policy,
                        "target": target,
                        "reached": all(point(fold)["reached"] for folds in mine for fold in folds),
                        **_over(mine, "score", point),
                        **_over(mine, "drop", point),
                        **_over(mine, "speedup", _place("policies", policy, "targets", number, "speedup"), currency),
                    }
                )
    skipped = {f"{one['recipe']} with {policy}": why for one in found for policy, why in one["skipped"].items()}
    return {
        "metric": found[0]["metric"],
        "rows": found[0]["rows"],
        "currency": currency,
        "seeds": settings.seeds,
        "exits": exits,
        "table": table,
        "areas": areas,
        "curves": _curves(found, settings),
        "skipped": skipped,
    }


Place = Callable[[Fold], Any]


def _place(*keys: str | int) -> Place:
    """What lies at the end of some keys in a fold."""

    def place(fold: Any) -> Any:
        return reduce(lambda part, key: part[key], keys, fold)

    return place


def _over(seeds: Sequence[Sequence[Fold]], name: str, place: Place, key: str | None = None) -> dict[str, float]:
    """Mean and deviation over seeds of a figure of some place, called `key` there."""
    return _spread(name, [float(np.mean([place(fold)[key or name] for fold in folds])) for folds in seeds])


def _area(seeds: Sequence[Sequence[Fold]], curve: Place, currency: str, most: float) -> dict[str, float]:
    """Mean and deviation over seeds of the area under some curve."""

    def of(fold: Fold) -> float:
        return area(curve(fold), currency, most, fold["exits"][0]["score"])

    return _spread("area", [float(np.mean([of(fold) for fold in folds])) for folds in seeds])


def area(points: Sequence[Mapping[str, Any]], currency: str, most: float, beyond: float) -> float:
    """Mean score over the logarithm of the speed-up from 1 to `most`, each time of the slowest setting that is so fast.

    Which settings there are was decided on calibration rows; none is chosen here by its score. A speed-up that no
    setting reaches counts with `beyond`, the score of exit 1 alone.
    """
    ordered = sorted(((point["speedup"][currency], point["score"]) for point in points), key=lambda one: one[0])
    speeds, scores = np.array([p[0] for p in ordered]), np.array([*(p[1] for p in ordered), beyond])
    grid = np.exp(np.linspace(0, np.log(most), 101)) if most > 1 else np.ones(1)
    return float(scores[np.searchsorted(speeds, grid - 1e-9)].mean())


def _curves(found: Sequence[Mapping[str, Any]], settings: CompareConfig) -> list[dict[str, Any]]:
    """Points of every curve, seed by seed and fold by fold: speed-up and score."""
    curves = []
    for one, fold in ((result, fold) for result in found for fold in result["folds"]):
        kinds = {"fixed exits": fold["exits"], **{name: part["curve"] for name, part in fold["policies"].items()}}
        for policy, points in kinds.items():
            curves.append(
                {
                    "recipe": one["recipe"],
                    "policy": policy,
                    "seed": one["seed"],
                    "points": [[point["speedup"][settings.currency], point["score"]] for point in points],
                }
            )
    return curves


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation (of a sample; 0 for one seed)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {name: float(np.mean(values)), f"{name}_std": deviation}
