"""What a policy must keep to while it runs. Shapes, dtypes and devices are looked at: nothing here reads a tensor.

A policy is asked outside of inference mode, without gradients. There torch refuses to change in place what the loop
made in inference mode, and counts the changes of all other tensors, so that neither goes unseen. What goes behind
torch's back (`.data`, `.detach()`, `.numpy()`) is left to `exitkit.testing.check_policy`. Leaving inference mode takes
as long as a small operation, so a live run does it once per batch, when a policy is asked first, and a replay always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from exitkit import containment
from exitkit.engine.limits import NONE, Limits
from exitkit.errors import PluginError
from exitkit.policy import Decision, Evidence, ExitPolicy, Passage, State

T = TypeVar("T")
INFERENCE_CHANGED = "Inplace update to inference tensor"
"""How torch's own error begins."""


def decide(
    name: str, policy: ExitPolicy, seen: Evidence, state: State, limits: Limits = NONE, guarded: bool = True
) -> tuple[Decision, State]:
    """Ask a policy who leaves, and check its answer. Both forms of answer come back as a Decision, within `limits`.

    `guarded`: whether a change in place of what it is given is looked for.
    """
    try:
        if guarded:
            decision, new_state = _ask(name, "decide", policy.decide, seen, state)
        else:
            decision, new_state = policy.decide(seen, dict(state))
    except PluginError:
        raise
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
        runs = _ask(name, "gate", policy.gate, before, state) if before.layer == 1 else policy.gate(before, state)
    except PluginError:
        raise
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
    if type(policy).conclude is ExitPolicy.conclude:
        return None
    try:
        answer = _ask(name, "conclude", policy.conclude, seen, state)
    except PluginError:
        raise
    except BaseException as error:
        _fail(name, "conclude", "", error)
    if answer is not None:
        _must_be(name, "conclude's answer", answer, tuple(seen.logits.shape), None, seen.logits.device)
    return answer


def start(name: str, policy: ExitPolicy, units: int, device: torch.device) -> State:
    """Ask a policy for its first state, and check that it has one row per unit."""
    if type(policy).start is ExitPolicy.start:
        return {}
    try:
        with torch.inference_mode(False), torch.no_grad():
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


Seen = TypeVar("Seen", Evidence, Passage)


def _ask(name: str, method: str, asked: Callable[[Seen, State], T], seen: Seen, state: State) -> T:
    """What a method says of what it sees and of the state. Raises PluginError: it changed either in place."""
    main = seen.hidden if isinstance(seen, Passage) else seen.logits
    # What the loop makes is guarded as a whole; the state holds what the policy made itself.
    handed = state if main.is_inference() else {**_tensors(seen), **state}
    before = {key: tensor._version for key, tensor in handed.items() if not tensor.is_inference()}
    try:
        with torch.inference_mode(False):
            torch.set_grad_enabled(False)  # until the end of the block; half as long as another one takes
            answer = asked(seen, dict(state))  # a copy, so that keys added in place are seen
    except RuntimeError as error:
        if not str(error).startswith(INFERENCE_CHANGED):
            raise
        changed = _changed(asked, seen, state)
    else:
        changed = [key for key, version in before.items() if handed[key]._version != version]
    if changed:
        what = ", ".join(f"state '{key}'" if key in state else f"'{key}'" for key in changed)
        raise _broken(name, f"{method} changes {what} of what it is given, in place; change a copy (tensor.clone()).")
    return answer


def _changed(asked: Callable[[Seen, State], Any], seen: Seen, state: State) -> list[str]:
    """The names of what a method changes in place: it is asked once more, about copies that count their changes."""
    with torch.inference_mode(False), torch.no_grad():
        copies: dict[str, Any] = {key: tensor.clone() for key, tensor in _tensors(seen).items()}
        own = {key: tensor.clone() for key, tensor in state.items()}
        before = {key: tensor._version for key, tensor in {**copies, **own}.items()}
        asked(dataclasses.replace(seen, **copies), dict(own))
    return [key for key, tensor in {**copies, **own}.items() if tensor._version != before[key]]


def _tensors(seen: Evidence | Passage) -> Mapping[str, Tensor]:
    """The tensors of what a policy sees, by field."""
    if isinstance(seen, Passage):
        return {"hidden": seen.hidden, "bounds": seen.bounds, "sequence": seen.sequence}
    found = {"logits": seen.logits, "live": seen.live, "fresh": seen.fresh, "sequence": seen.sequence}
    more = {"position": seen.position, "probe": seen.probe, "key": seen.key}
    return found | {key: tensor for key, tensor in more.items() if tensor is not None}


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
