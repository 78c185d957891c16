"""All that a policy author needs: the contract of an exit policy and the values it sees.

A policy answers one question after every exit but the last: which units have their final answer? It is a frozen
dataclass of settings with pure decisions. What varies from unit to unit lives in `State`, a dict of tensors with one
row per unit, which the loop owns and shortens; a policy therefore works at any batch size without knowing of batches.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from exitkit.containment import contain

State = dict[str, Tensor]
"""What a policy remembers: tensors with one row per unit. Keys, dtypes and row count are fixed by `start`."""

Raising = Literal["earlier", "later", "mixed"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What can be known of a model before its first row."""

    exits: int  # E; exits are numbered 1..E
    layers: int  # L
    labels: int  # C
    width: int  # d
    task: str  # "classification", "multi-label", "regression" or "tagging"
    scale: float = 1.0  # in regression the standard deviation of the training labels
    words_halt: bool = True  # False: the family's layers cannot compute some words only
    starts: tuple[int, ...] = (0,)  # layers below each complete model: (0,), but in a cascade one per model


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a policy may look at after one exit: one row per unit of every sequence still running.

    In tagging, words that have their answer keep a row while their sentence runs: `live` is False and `logits` final.
    Units whose sequence skipped every layer since the last exit that was asked have `fresh` False and their latest
    logits (zeros before the first). The loop lets only live and fresh units leave, and keeps the state of all others as
    it was, so a policy may ignore both. Fields are only ever added: build one for a test with
    `exitkit.testing.evidence`.
    """

    exit: int  # 1-based number of this exit
    exits: int  # E
    layer: int  # 1-based layer that this exit sits on
    layers: int  # L
    labels: int  # C
    task: str
    logits: Tensor  # [U, C]; NaN when the policy does not read them
    live: Tensor  # [U] bool, no answer yet
    fresh: Tensor  # [U] bool, new states since the last exit that was asked
    sequence: Tensor  # [U] running sequence of each unit, ascending from 0
    position: Tensor  # [U] place of the unit in its sequence: the word's number, 0 in classification
    probe: Tensor | None = None  # [U, p] what the policy's probe says of the exit's features
    scale: float = 1.0  # in regression the standard deviation of the training labels
    key: Tensor | None = None  # [U] a number from the unit's tokens alone, for policies that read "key"


@dataclass(frozen=True, slots=True)
class Passage:
    """What a gate may look at before a layer: the states that the layer would read."""

    layer: int  # 1-based layer about to run
    layers: int  # L
    hidden: Tensor  # [T, d] all tokens of the running sequences, end to end
    bounds: Tensor  # [S + 1] sequence s owns rows bounds[s]:bounds[s + 1]
    sequence: Tensor  # [U] running sequence of each unit
    probe: nn.Module | None = None  # the policy's own module, as `probe` built it and its recipe trained it
    lengths: tuple[int, ...] = ()  # [S] tokens of each sequence, on the host


@dataclass(frozen=True, slots=True)
class Decision:
    """Who leaves now, and, where it is not the exit's own, with which answer."""

    leave: Tensor  # [U] bool
    answer: Tensor | None = None  # [U, C] logits; rows that stay are ignored


class ExitPolicy(ABC):
    """Decides after each exit who leaves. Subclasses are frozen dataclasses whose fields are `knob(...)`s.

    A decision for a unit may depend on that unit and on units of its own sequence, never on others of the batch.
    Methods must not change their arguments and must not move tensors to the host.
    """

    api: ClassVar[int] = 1
    """The contract this policy is written for."""

    reads: ClassVar[frozenset[str]] = frozenset({"logits"})
    """What decisions look at: "logits", "probe", "key", "answered". An exit whose logits and probe nobody reads runs
    its head only for leavers. With "answered" it is run for answered words too, whose `logits` then are this exit's."""

    rewrites: ClassVar[bool] = False
    """Whether decisions change states that later exits read (gates, halted words). Such a policy cannot be replayed
    from a recording; calibrate runs it instead."""

    together: ClassVar[bool] = False
    """Whether all units of a sequence leave at the same exit. In tagging other policies let words leave one by one,
    which changes what the words that stay read, and needs a family whose words can halt."""

    context_halts = False
    """In tagging: whether tokens of no word, such as [CLS] and [SEP], stop computing once a word of their sentence has
    its answer; else they compute as long as the sentence runs. A policy may make it a setting."""

    trained_by: ClassVar[str | None] = None
    """The recipe that trains `probe`."""

    def __init_subclass__(cls, **more: Any) -> None:
        """What is asked outside of the loop names the policy; `engine.contract` asks for the rest."""
        super().__init_subclass__(**more)
        contain(cls, "policy", ExitPolicy, {"refuses": _no_reason})
        contain(cls, "policy", ExitPolicy, {"probe": _no_module, "__post_init__": None}, allowed=(ValueError,))

    @classmethod
    def refuses(cls, shape: Shape) -> str | None:
        """Why this policy cannot judge such a model's answers, as the end of a sentence; None when it can.

        Unless a policy says otherwise, it is for answers that are one of several classes.
        """
        return None if shape.task in ("classification", "tagging") else "it judges one answer among several classes"

    def start(self, units: int, device: torch.device) -> State:
        """The state before the first layer, one row per unit."""
        return {}

    def gate(self, before: Passage, state: State) -> Tensor | None:
        """Which sequences run the next layer: [S] bool, or None for all. Asked before every layer, the first too."""
        return None

    def gate_cost(self, before: Passage) -> int:
        """Multiply-adds of asking `gate`, from `before.lengths`. A gate that asks a module must say what it costs."""
        return 0

    @abstractmethod
    def decide(self, seen: Evidence, state: State) -> tuple[Tensor | Decision, State]:
        """Who leaves after this exit ([U] bool, or a Decision), and the state from here on.

        Asked after every exit but the last, save those that settings turn off (see `knob`) or limits forbid.
        """

    def conclude(self, seen: Evidence, state: State) -> Tensor | None:
        """At the last exit: answers that replace its logits ([U, C]), or None to keep them."""
        return None

    @classmethod
    def probe(cls, shape: Shape) -> nn.Module | None:
        """A module of the policy's own, trained with the model and saved beside the exit heads.

        A policy may take more arguments with defaults: the recipe chooses them (`Recipe.probes`), and the artifact
        remembers them, so that the same module is built when it is read.
        """
        return None


def _no_reason(policy: type[ExitPolicy], found: object, *_: object) -> str | None:
    """What is wrong with what `refuses` gives."""
    return None if found is None or isinstance(found, str) else f"must give a reason or None, not {found!r}"


def _no_module(policy: type[ExitPolicy], found: object, *_: object, **more: object) -> str | None:
    """What is wrong with what `probe` gives."""
    fits = found is None or isinstance(found, nn.Module)
    return None if fits else f"must give a module or None, not {type(found).__name__}"


def reads_heads(policy: type[ExitPolicy] | ExitPolicy) -> bool:
    """Whether every exit's head is run for a policy, or only that of the exit where a unit leaves."""
    return bool(policy.reads - {"key"})


def has_gates(policy: type[ExitPolicy]) -> bool:
    """Whether sequences may skip layers under a policy."""
    return policy.gate is not ExitPolicy.gate


def asks_probe(policy: type[ExitPolicy]) -> bool:
    """Whether a policy cannot run without its probe, be it for exits or for gates."""
    return "probe" in policy.reads or (has_gates(policy) and policy.trained_by is not None)


Bound = float | Callable[[Shape], float]


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting that calibrate may turn. `low`, `high` and `off` are numbers or functions of the model's shape."""

    name: str
    default: Any
    kind: type
    low: Bound | None
    high: Bound | None
    off: Bound | None
    raising: Raising
    choices: tuple[Any, ...] | None
    per_exit: bool
    tasks: frozenset[str] | None = None


def knob(
    default: Any,
    *,
    low: Bound | None = None,
    high: Bound | None = None,
    off: Bound | None = None,
    raising: Raising = "earlier",
    choices: Sequence[Any] | None = None,
    per_exit: bool = False,
    tasks: Sequence[str] | None = None,
) -> Any:
    """Declare a setting of a policy: its default, what it may be, and which way it works.

    Args:
        default: value when nobody sets it.
        low: smallest value allowed.
        high: largest value allowed.
        off: a value that makes the policy never leave early, under rounding too; it may lie outside the range.
        raising: what a larger value does to exits: "earlier", "later", or "mixed" when it depends.
        choices: the allowed values of a setting that is not a number.
        per_exit: whether a list with one value per exit but the last makes sense. The loop holds one policy per exit,
            so `decide` sees a scalar in any case. An exit where all such settings are off is not asked, unless the
            policy has a `start` of its own, or every setting of it is off.
        tasks: tasks that the setting matters for (None = all); elsewhere it keeps its default and is not shown.
    """
    declared = {
        "low": low,
        "high": high,
        "off": off,
        "raising": raising,
        "choices": tuple(choices) if choices is not None else None,
        "per_exit": per_exit,
        "tasks": None if tasks is None else frozenset(tasks),
    }
    return dataclasses.field(default=default, metadata={"exitkit": declared})


def knobs(policy: type[ExitPolicy] | ExitPolicy, task: str | None = None) -> tuple[Knob, ...]:
    """The knobs of a policy that matter for a task (None = all of them), in the order of its fields.

    Fields declared without `knob` are plain settings.
    """
    found = []
    for field in dataclasses.fields(policy):  # type: ignore[arg-type]  # policies are dataclasses; checked when registered
        if "exitkit" in field.metadata:
            found.append(
                Knob(name=field.name, default=field.default, kind=type(field.default), **field.metadata["exitkit"])
            )
    return tuple(knob for knob in found if task is None or knob.tasks is None or task in knob.tasks)


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of `logits` [..., C], divided by ln C: 0 is certain, 1 knows nothing. fp32 [...].

    FastBERT (2004.02178), eq. 7. DeeBERT and its heirs use nats instead; multiply by ln C to compare thresholds.
    Impossible classes (−inf) count zero; rows with +inf or NaN give NaN, for which every comparison is False.
    """
    shares = logits.float().softmax(dim=-1)
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return (entropy / math.log(logits.shape[-1])).clamp(max=1.0)


def window_max(values: Tensor, sequence: Tensor, window: int) -> Tensor:
    """The largest of `values` [U] within `window // 2` places in the same sequence (`sequence` [U] ascends).

    TokEE (2105.13878, section 3.3) with its window of odd size; at the ends of a sequence there is nothing to look at.
    """
    found = values
    for step in range(1, min(window // 2, len(values) - 1) + 1):
        alike = sequence[step:] == sequence[:-step]
        ahead = torch.where(alike, values[step:], -torch.inf)
        behind = torch.where(alike, values[:-step], -torch.inf)
        found = torch.maximum(found, torch.nn.functional.pad(ahead, (0, step), value=-torch.inf))
        found = torch.maximum(found, torch.nn.functional.pad(behind, (step, 0), value=-torch.inf))
    return found


def label_entropy(logits: Tensor) -> Tensor:
    """Entropy of each label by itself in multi-label, in bits: 0 is certain, 1 knows nothing. fp32, as `logits`.

    Infinite logits are certain; NaN gives NaN, for which every comparison is False.
    """
    share = logits.float().sigmoid()
    entropy: Tensor = torch.special.entr(share) + torch.special.entr(1 - share)
    return (entropy / math.log(2)).clamp(max=1.0)
