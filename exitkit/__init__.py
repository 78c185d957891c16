"""exitkit: make transformer encoders answer early, and know what it costs.

Names are loaded when they are first used, so that `exitkit --help` does not wait for torch. Plugins need no others:
docs/plugins.md says which are for whom.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from exitkit import moved

if TYPE_CHECKING:
    from exitkit.artifacts.cascade import cascade as cascade
    from exitkit.benchmarking.benchmark import benchmark as benchmark
    from exitkit.calibration.calibrate import calibrate as calibrate
    from exitkit.comparison.compare import compare as compare
    from exitkit.distillation.distill import distill as distill
    from exitkit.distillation.losses import answer_losses as answer_losses
    from exitkit.distillation.losses import hidden_loss as hidden_loss
    from exitkit.distillation.losses import relations_loss as relations_loss
    from exitkit.distillation.losses import scores_loss as scores_loss
    from exitkit.distillation.losses import units_loss as units_loss
    from exitkit.distiller import Distiller as Distiller
    from exitkit.distiller import Reads as Reads
    from exitkit.distiller import Students as Students
    from exitkit.engine.attention import attend as attend
    from exitkit.engine.encoders.base import Anatomy as Anatomy
    from exitkit.engine.encoders.base import AttentionEncoder as AttentionEncoder
    from exitkit.engine.encoders.base import Encoder as Encoder
    from exitkit.engine.encoders.base import LayerCost as LayerCost
    from exitkit.engine.encoders.base import Part as Part
    from exitkit.engine.encoders.base import Rows as Rows
    from exitkit.engine.encoders.base import active_states as active_states
    from exitkit.engine.encoders.base import by_pieces as by_pieces
    from exitkit.engine.encoders.base import counted_positions as counted_positions
    from exitkit.engine.encoders.base import first_tokens as first_tokens
    from exitkit.engine.encoders.base import linear_cost as linear_cost
    from exitkit.engine.encoders.base import mean_of_pieces as mean_of_pieces
    from exitkit.engine.encoders.base import mean_of_tokens as mean_of_tokens
    from exitkit.engine.encoders.base import split_heads as split_heads
    from exitkit.engine.encoders.base import update_active as update_active
    from exitkit.engine.encoders.bert import BertEncoder as BertEncoder
    from exitkit.engine.encoders.padded import PaddedEncoder as PaddedEncoder
    from exitkit.engine.heads import Pooling as Pooling
    from exitkit.engine.model import ExitModel as ExitModel
    from exitkit.engine.stream import Stream as Stream
    from exitkit.engine.stream import Tokens as Tokens
    from exitkit.engine.stream import resting as resting
    from exitkit.errors import ExitkitError as ExitkitError
    from exitkit.errors import PluginError as PluginError
    from exitkit.errors import UsageError as UsageError
    from exitkit.hookspecs import Register as Register
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
    from exitkit.recipe import Conflict as Conflict
    from exitkit.recipe import EveryExit as EveryExit
    from exitkit.recipe import Group as Group
    from exitkit.recipe import Judges as Judges
    from exitkit.recipe import Lesson as Lesson
    from exitkit.recipe import Over as Over
    from exitkit.recipe import Passed as Passed
    from exitkit.recipe import Phase as Phase
    from exitkit.recipe import Recipe as Recipe
    from exitkit.tasks import Task as Task
    from exitkit.tasks import task as task
    from exitkit.training.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "exitkit.artifacts.cascade": ["cascade"],
    "exitkit.benchmarking.benchmark": ["benchmark"],
    "exitkit.calibration.calibrate": ["calibrate"],
    "exitkit.comparison.compare": ["compare"],
    "exitkit.distillation.distill": ["distill"],
    "exitkit.distillation.losses": ["answer_losses", "hidden_loss", "relations_loss", "scores_loss", "units_loss"],
    "exitkit.distiller": ["Distiller", "Reads", "Students"],
    "exitkit.engine.attention": ["attend"],
    "exitkit.engine.encoders.base": [
        "Anatomy",
        "AttentionEncoder",
        "Rows",
        "Encoder",
        "LayerCost",
        "Part",
        "active_states",
        "by_pieces",
        "counted_positions",
        "first_tokens",
        "linear_cost",
        "mean_of_pieces",
        "mean_of_tokens",
        "split_heads",
        "update_active",
    ],
    "exitkit.engine.encoders.bert": ["BertEncoder"],
    "exitkit.engine.encoders.padded": ["PaddedEncoder"],
    "exitkit.engine.heads": ["Pooling"],
    "exitkit.engine.model": ["ExitModel"],
    "exitkit.engine.stream": ["Stream", "Tokens", "resting"],
    "exitkit.errors": ["ExitkitError", "PluginError", "UsageError"],
    "exitkit.hookspecs": ["Register", "hookimpl"],
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
    "exitkit.recipe": ["Conflict", "EveryExit", "Group", "Judges", "Lesson", "Over", "Passed", "Phase", "Recipe"],
    "exitkit.tasks": ["Task", "task"],
    "exitkit.training.train": ["train"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'exitkit' has no attribute '{name}'")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME_OF]
