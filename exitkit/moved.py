"""Where modules of exitkit 0.1.0 stand now, so that what was written for it is still imported, with a warning.

The old path gives the very module that the new one gives, so that classes stay the same objects.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # it takes longer to import than all of this package's door

MOVED = {
    "artifact": "artifacts.artifact",
    "attention": "engine.attention",
    "clock": "measuring.clock",
    "config": "configuration.config",
    "contract": "engine.contract",
    "cost": "engine.cost",
    "encoders": "engine.encoders",
    "heads": "engine.heads",
    "inside": "engine.internals",
    "inspection": "artifacts.inspection",
    "layout": "engine.layout",
    "limits": "engine.limits",
    "loop": "engine.loop",
    "measure": "measuring.runs",
    "memory": "calibration.memory",
    "metrics": "tasks.metrics",
    "model": "engine.model",
    "model_card": "artifacts.model_card",
    "notation": "configuration.notation",
    "parsing": "configuration.parsing",
    "replay": "engine.replay",
    "runtime": "configuration.runtime",
    "settings": "engine.schedule",
    "stream": "engine.stream",
    "tagging": "tasks.tags",
    "trace": "engine.trace",
}
"""Modules and packages below `exitkit`, by the names that they had in 0.1.0."""

GONE_FROM = "0.3"
"""The release that knows old paths no more."""


class OldPaths:
    """Finds modules by their old paths. It stands before all other finders: an old folder with nothing but a
    `__pycache__` in it would be found as a package, and so would a second copy of a file in a package that moved.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A spec that loads what stands at the new place; None for all names but old ones."""
        package, _, inner = name.partition(".")
        first, *rest = inner.split(".")
        if package != "exitkit" or first not in MOVED:
            return None
        return ModuleSpec(name, cast("Loader", _Elsewhere(".".join(["exitkit", MOVED[first], *rest]))))


class _Elsewhere:
    """A loader that gives a module which stands elsewhere."""

    def __init__(self, place: str) -> None:
        self.place = place

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(
            f"{spec.name} has moved to {self.place}; the old path is gone from exitkit {GONE_FROM} on. Names that "
            "plugins need are imported from exitkit itself: docs/plugins.md lists them.",
            DeprecationWarning,
            stacklevel=2,  # frames of the import system do not count
        )
        module = import_module(self.place)
        self._own = module.__spec__  # the import system puts the old path's in its place
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own


def install() -> None:
    """Let old paths be imported in this process."""
    if OldPaths not in sys.meta_path:
        sys.meta_path.insert(0, OldPaths)
