"""The whole journey on built-in data, in under three minutes on two cores."""

from __future__ import annotations

from typing import Any

from exitkit.benchmarking.benchmark import benchmark
from exitkit.calibration.calibrate import calibrate
from exitkit.configuration.config import DemoConfig
from exitkit.report.folder import Write, opened
from exitkit.training.train import train

TARGET = 3.0
PATIENT_TARGET = 2.0  # patience takes its slowest point above this: it has no other near


def demo(settings: DemoConfig) -> dict[str, Any]:
    """Train a small encoder from scratch on `demo:reviews`, calibrate three policies, benchmark them.

    Returns:
        `model`, `train`, `calibrate` (a result per policy), `benchmark`, and `grades`: for every grade of the generated
        reviews its rows, what every exit alone scores on them, and where and how well `entropy` answers them.
    """
    with opened(settings.output / "report") as write:
        return _journey(settings, write)


def _journey(settings: DemoConfig, write: Write) -> dict[str, Any]:
    folder = settings.output / "model"
    where: dict[str, Any] = {"device": settings.device, "threads": settings.threads}
    trained = train(
        model="demo:tiny",
        data="demo:reviews",
        output=folder,
        overwrite=True,
        epochs=settings.epochs,
        max_train_samples=settings.max_train_samples,
        seed=settings.seed,
        recipe={"name": "joint", "learning_rate": 8e-4, "head_learning_rate": 2e-3},
        **where,
    )
    targets = {"patience": PATIENT_TARGET, "confidence": TARGET, "entropy": TARGET}  # the last one becomes the default
    calibrated = {
        name: calibrate(folder, policy=name, target_speedup=target, currency="layers", **where)
        for name, target in targets.items()
    }
    reached = [name for name in reversed(targets) if calibrated[name]["feasible"]]
    report = benchmark(folder, policy=reached or None, rounds=3, **where)
    write(report)
    return {
        "model": str(folder),
        "train": trained,
        "calibrate": [calibrated[name] for name in reversed(targets)],
        "benchmark": {**report, "report": str(settings.output / "report")},
        "grades": grades(report),
    }


def grades(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What each exit alone scores on each grade, and where the first run's rows of it leave."""
    alone = [
        one for one in report["baselines"] if one["name"].startswith("fixed") or one["name"] == "packed full depth"
    ]
    found = []
    for part in report["runs"][0]["breakdown"]["by_group"]:
        scores = [next(p["score"] for p in one["by_group"] if p["name"] == part["name"]) for one in alone]
        found.append({"grade": part["name"], "by_exit": scores, **{k: v for k, v in part.items() if k != "name"}})
    return sorted(found, key=lambda one: mean_exit(one["exits"]))


def mean_exit(histogram: list[int]) -> float:
    """The mean exit of rows that left as a histogram says."""
    return sum(number * rows for number, rows in enumerate(histogram, start=1)) / max(1, sum(histogram))
