"""The doors through which everything exchangeable comes in, exitkit's own policies and recipes included.

A plugin is a module that an entry point of group `exitkit` names. It implements one or more of these hooks:

    from exitkit import hookimpl

    @hookimpl
    def register_policies(register):
        register("entropy", Entropy)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import pluggy

if TYPE_CHECKING:  # `from exitkit import hookimpl` does not wait for torch
    from exitkit.distiller import Distiller
    from exitkit.engine.encoders.base import Encoder
    from exitkit.policy import ExitPolicy
    from exitkit.recipe import Recipe

PROJECT = "exitkit"
T = TypeVar("T", contravariant=True)

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol[T]):
    """Offer `thing` under `name`. A name that another plugin has taken is reported with both of them."""

    def __call__(self, name: str, thing: type[T]) -> None:
        """Register a class."""


@hookspec
def register_policies(register: Register[ExitPolicy]) -> None:
    """Call `register("name", PolicyClass)` for each exit policy of this plugin."""


@hookspec
def register_recipes(register: Register[Recipe]) -> None:
    """Call `register("name", RecipeClass)` for each way to train exits of this plugin."""


@hookspec
def register_distillers(register: Register[Distiller]) -> None:
    """Call `register("name", DistillerClass)` for each way to distil of this plugin. Provisional."""


@hookspec
def register_encoders(register: Register[Encoder]) -> None:
    """Call `register("model_type", EncoderClass)` for each `model_type` of a transformers config. Provisional."""
