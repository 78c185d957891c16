"""What importing a module may change for the whole program, and how that is undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Switch(NamedTuple):
    """One setting of torch's."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], Any]


SWITCHES = (
    Switch("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Switch("torch's default device", torch.get_default_device, lambda device: torch.set_default_device(_unset(device))),
    Switch("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Switch("whether torch computes gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    Switch(
        "whether torch must be deterministic",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
)


@contextmanager
def put_back() -> Iterator[list[str]]:
    """Put back what changes inside. Afterwards the list names it; torch's random numbers go on as if nothing was drawn.

    So a run does not depend on which plugins are installed.
    """
    before, random = [switch.get() for switch in SWITCHES], torch.get_rng_state()
    changed: list[str] = []
    try:
        yield changed
    finally:
        torch.set_rng_state(random)
        for switch, value in zip(SWITCHES, before, strict=True):
            if switch.get() != value:
                changed.append(switch.name)
                switch.set(value)


def _unset(device: torch.device) -> torch.device | None:
    """What stands for a default device: nothing for the usual one, since every other way costs time in every call."""
    return None if device.type == "cpu" else device
