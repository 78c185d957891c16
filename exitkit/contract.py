"""What a policy must keep to while it runs. Shapes, dtypes and devices are looked at: nothing here reads a tensor."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from exitkit import containment
from exitkit.errors import PluginError
from exitkit.limits import NONE, Limits
from exitkit.policy import Decision, Evidence, ExitPolicy, Passage, State


def decide(
    name: str, policy: ExitPolicy, seen: Evidence, state: State, limits: Limits = NONE
) -> tuple[Decision, State]:
    """Ask a policy who leaves, and check its answer. Both forms of answer come back as a Decision, within `limits`."""
    try:
        decision, new_state = policy.decide(seen, dict(state))  # a copy, so that keys added in place are seen
    except BaseException as error:
        _fail(name, "decide", f" at exit {seen.exit}", error)
    if isinstance(decision, Tensor):
        decision = Decision(decision)
    if not isinstance(decision, Decision):
        raise _broken(name, f"decide must give a tensor or a Decision first, not {type(decision).__name__}.")
    units, labels = seen.logits.shape
    device = seen.logits.device
    _must_be(name, "decide's leave", decision.leave, (units,), torch.bool, device)
    if decision.answer is not None:
        _must_be(name, "decide's answer", decision.answer, (units, labels), None, device)
    _must_be_state(name, "decide", new_state)
    _same_rows(name, new_state, state)
    return limits.hold(seen, decision, policy.together), new_state


def gate(name: str, policy: ExitPolicy, before: Passage, state: State) -> Tensor | None:
    """Ask a policy which sequences run a layer, and check its answer."""
    try:
        runs = policy.gate(before, state)
    except BaseException as error:
        _fail(name, "gate", f" before layer {before.layer}", error)
    if runs is not None:
        _must_be(name, "gate's answer", runs, (before.bounds.shape[0] - 1,), torch.bool, before.hidden.device)
    return runs


def gate_cost(name: str, policy: ExitPolicy, before: Passage) -> int:
    """What asking the gate costs, checked: a count of multiply-adds."""
    try:
        cost = policy.gate_cost(before)
    except BaseException as error:
        _fail(name, "gate_cost", f" before layer {before.layer}", error)
    if not isinstance(cost, int) or cost < 0:
        raise _broken(name, f"gate_cost must be a whole number of multiply-adds, not {cost!r}.")
    return cost


def conclude(name: str, policy: ExitPolicy, seen: Evidence, state: State) -> Tensor | None:
    """Ask a policy for its answer at the last exit, and check it."""
    try:
        answer = policy.conclude(seen, state)
    except BaseException as error:
        _fail(name, "conclude", "", error)
    if answer is not None:
        _must_be(name, "conclude's answer", answer, tuple(seen.logits.shape), None, seen.logits.device)
    return answer


def start(name: str, policy: ExitPolicy, units: int, device: torch.device) -> State:
    """Ask a policy for its first state, and check that it has one row per unit."""
    try:
        state = policy.start(units, device)
    except BaseException as error:
        _fail(name, "start", "", error)
    _must_be_state(name, "start", state)
    for key, rows in state.items():
        if not isinstance(rows, Tensor) or rows.dim() == 0 or rows.shape[0] != units:
            raise _broken(name, f"state '{key}' must be a tensor with {units} rows, one per unit.")
        if rows.device != device:
            raise _broken(name, f"state '{key}' is on device {rows.device}; start was asked for {device}.")
    return state


def _same_rows(name: str, new: State, old: State) -> None:
    if new.keys() != old.keys():
        raise _broken(name, f"state had {sorted(old)} and came back with {sorted(new)}; start fixes its keys.")
    for key, before in old.items():
        after = new[key]
        if (
            not isinstance(after, Tensor)
            or after.shape[:1] != before.shape[:1]
            or after.dtype != before.dtype
            or after.device != before.device
        ):
            raise _broken(name, f"state '{key}' was {_told(before)} and came back as {_told(after)}.")


def _must_be_state(name: str, method: str, got: object) -> None:
    if not isinstance(got, dict):
        raise _broken(name, f"the state that {method} gives must be a dict of tensors, not {type(got).__name__}.")


def _must_be(
    name: str, what: str, got: object, shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device
) -> None:
    if isinstance(got, Tensor) and tuple(got.shape) == shape and dtype in (None, got.dtype) and got.device == device:
        return
    wanted = f"{list(shape)}{f' {dtype}' if dtype else ''} on {device}"
    raise _broken(name, f"{what} must be a tensor {wanted}, not {_told(got)}.")


def _told(got: object) -> str:
    return f"{list(got.shape)} {got.dtype} on {got.device}" if isinstance(got, Tensor) else type(got).__name__


def _broken(name: str, what: str) -> PluginError:
    return containment.broken("policy", name, what)


def _fail(name: str, method: str, where: str, error: BaseException) -> NoReturn:
    """Raise for what a policy's method raised."""
    containment.reraise("policy", name, f"{method} failed{where}", error)
