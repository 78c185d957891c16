"""The whole journey on built-in data, in a few minutes on two cores."""

from __future__ import annotations

from typing import Any

from exitkit.benchmarking.benchmark import benchmark
from exitkit.calibration.calibrate import calibrate
from exitkit.config import DemoConfig
from exitkit.report.folder import write
from exitkit.training.train import train

TARGET = 2.0


def demo(settings: DemoConfig) -> dict[str, Any]:
    """Train a tiny encoder from scratch on `demo:reviews`, calibrate it to 2x, benchmark it.

    Returns:
        The results of the three commands, and the folders they wrote.
    """
    folder = settings.output / "model"
    where: dict[str, Any] = {"device": settings.device, "threads": settings.threads}
    trained = train(
        model="demo:tiny",
        data="demo:reviews",
        output=folder,
        overwrite=True,
        epochs=3,
        seed=settings.seed,
        recipe={"name": "joint", "learning_rate": 5e-4, "head_learning_rate": 1e-3},
        **where,
    )
    calibrated = calibrate(folder, target_speedup=TARGET, currency="layers", **where)
    report = benchmark(folder, policy=["entropy", "patience"], speedups=[1, 2, 3], currency="layers", rounds=3, **where)
    reports = settings.output / "report"
    write(reports, report)
    return {
        "model": str(folder),
        "train": trained,
        "calibrate": calibrated,
        "benchmark": {**report, "report": str(reports)},
    }
