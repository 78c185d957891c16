"""exitkit: make transformer encoders answer early, and know what it costs.

Names are loaded when they are first used, so that `exitkit --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exitkit.artifacts.cascade import cascade as cascade
    from exitkit.benchmarking.benchmark import benchmark as benchmark
    from exitkit.calibration.calibrate import calibrate as calibrate
    from exitkit.comparison.compare import compare as compare
    from exitkit.distillation.distill import distill as distill
    from exitkit.errors import ExitkitError as ExitkitError
    from exitkit.hookspecs import hookimpl as hookimpl
    from exitkit.policy import Decision as Decision
    from exitkit.policy import Evidence as Evidence
    from exitkit.policy import ExitPolicy as ExitPolicy
    from exitkit.policy import Passage as Passage
    from exitkit.policy import Shape as Shape
    from exitkit.policy import State as State
    from exitkit.policy import knob as knob
    from exitkit.policy import label_entropy as label_entropy
    from exitkit.policy import normalised_entropy as normalised_entropy
    from exitkit.policy import window_max as window_max
    from exitkit.prediction.predictor import load as load
    from exitkit.training.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "exitkit.benchmarking.benchmark": ["benchmark"],
    "exitkit.calibration.calibrate": ["calibrate"],
    "exitkit.artifacts.cascade": ["cascade"],
    "exitkit.comparison.compare": ["compare"],
    "exitkit.distillation.distill": ["distill"],
    "exitkit.errors": ["ExitkitError"],
    "exitkit.hookspecs": ["hookimpl"],
    "exitkit.policy": [
        "Decision",
        "Evidence",
        "ExitPolicy",
        "Passage",
        "Shape",
        "State",
        "knob",
        "label_entropy",
        "normalised_entropy",
        "window_max",
    ],
    "exitkit.prediction.predictor": ["load"],
    "exitkit.training.train": ["train"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'exitkit' has no attribute '{name}'")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME_OF]
