"""What a policy must keep to while it runs. Only shapes and dtypes are looked at: nothing here reads a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from exitkit.errors import PluginError
from exitkit.limits import NONE, Limits
from exitkit.policy import Decision, Evidence, ExitPolicy, Passage, State


def decide(
    name: str, policy: ExitPolicy, seen: Evidence, state: State, limits: Limits = NONE
) -> tuple[Decision, State]:
    """Ask a policy who leaves, and check its answer. Both forms of answer come back as a Decision, within `limits`."""
    try:
        decision, new_state = policy.decide(seen, dict(state))  # a copy, so that keys added in place are seen
    except Exception as error:
        raise _broken(name, f"decide failed at exit {seen.exit}: {type(error).__name__}: {error}") from error
    if isinstance(decision, Tensor):
        decision = Decision(decision)
    if not isinstance(decision, Decision):
        raise _broken(name, f"decide must give a tensor or a Decision first, not {type(decision).__name__}.")
    units, labels = seen.logits.shape
    _must_be(name, "decide's leave", decision.leave, (units,), torch.bool)
    if decision.answer is not None:
        _must_be(name, "decide's answer", decision.answer, (units, labels), None)
    _must_be_state(name, "decide", new_state)
    _same_rows(name, new_state, state)
    return limits.hold(seen, decision, policy.together), new_state


def gate(name: str, policy: ExitPolicy, before: Passage, state: State) -> Tensor | None:
    """Ask a policy which sequences run a layer, and check its answer."""
    try:
        runs = policy.gate(before, state)
    except Exception as error:
        raise _broken(name, f"gate failed before layer {before.layer}: {type(error).__name__}: {error}") from error
    if runs is not None:
        _must_be(name, "gate's answer", runs, (before.bounds.shape[0] - 1,), torch.bool)
    return runs


def gate_cost(name: str, policy: ExitPolicy, before: Passage) -> int:
    """What asking the gate costs, checked: a count of multiply-adds."""
    cost = policy.gate_cost(before)
    if not isinstance(cost, int) or cost < 0:
        raise _broken(name, f"gate_cost must be a whole number of multiply-adds, not {cost!r}.")
    return cost


def conclude(name: str, policy: ExitPolicy, seen: Evidence, state: State) -> Tensor | None:
    """Ask a policy for its answer at the last exit, and check it."""
    try:
        answer = policy.conclude(seen, state)
    except Exception as error:
        raise _broken(name, f"conclude failed: {type(error).__name__}: {error}") from error
    if answer is not None:
        _must_be(name, "conclude's answer", answer, tuple(seen.logits.shape), None)
    return answer


def start(name: str, policy: ExitPolicy, units: int, device: torch.device) -> State:
    """Ask a policy for its first state, and check that it has one row per unit."""
    try:
        state = policy.start(units, device)
    except Exception as error:
        raise _broken(name, f"start failed: {type(error).__name__}: {error}") from error
    _must_be_state(name, "start", state)
    for key, rows in state.items():
        if not isinstance(rows, Tensor) or rows.dim() == 0 or rows.shape[0] != units:
            raise _broken(name, f"state '{key}' must be a tensor with {units} rows, one per unit.")
    return state


def _same_rows(name: str, new: State, old: State) -> None:
    if new.keys() != old.keys():
        raise _broken(name, f"state had {sorted(old)} and came back with {sorted(new)}; start fixes its keys.")
    for key, before in old.items():
        after = new[key]
        if not isinstance(after, Tensor) or after.shape[:1] != before.shape[:1] or after.dtype != before.dtype:
            got = f"{list(after.shape)} {after.dtype}" if isinstance(after, Tensor) else type(after).__name__
            raise _broken(name, f"state '{key}' was {list(before.shape)} {before.dtype} and came back as {got}.")


def _must_be_state(name: str, method: str, got: object) -> None:
    if not isinstance(got, dict):
        raise _broken(name, f"the state that {method} gives must be a dict of tensors, not {type(got).__name__}.")


def _must_be(name: str, what: str, got: object, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    if isinstance(got, Tensor) and tuple(got.shape) == shape and dtype in (None, got.dtype):
        return
    found = f"{list(got.shape)} {got.dtype}" if isinstance(got, Tensor) else type(got).__name__
    raise _broken(name, f"{what} must be a tensor {list(shape)}{f' {dtype}' if dtype else ''}, not {found}.")


def _broken(name: str, what: str) -> PluginError:
    return PluginError(f"policy '{name}' breaks its contract: {what}")
