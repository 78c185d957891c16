"""transformers.Trainer, told about exits: a recipe's losses and learning rates, weights as safetensors."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from exitkit.artifacts import artifact
from exitkit.data.batches import NO_LABEL, collator
from exitkit.engine.internals import Internals
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Stream, units_of
from exitkit.errors import ExitkitError, UsageError, one_of
from exitkit.progress import Advance
from exitkit.recipe import EveryExit, Over, Passed, Phase, Recipe
from exitkit.tasks import Task
from exitkit.training.adversarial import FastGradient
from exitkit.training.tutor import Tutor

log = logging.getLogger("exitkit")

OURS = {"output_dir", "num_train_epochs", "learning_rate", "seed", "data_seed", "bf16", "fp16", "use_cpu"}
"""Fields of TrainingArguments that have a setting of ours, which says the same for every phase."""

OF_ROWS = {"labels", "labelled", "row", "solved"}
"""Columns that are not the model's input."""


class RecipeTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trains one phase of a recipe."""

    def __init__(
        self,
        *args: Any,
        recipe: Recipe,
        phase: Phase,
        task: Task,
        weights: Tensor | None,
        adversary: FastGradient | None,
        tutor: Tutor | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.recipe, self.phase, self.task, self.weights = recipe, phase, task, weights
        self.adversary = adversary
        self.tutor = tutor
        self.conflict = recipe.conflict(phase.name, self.model)
        self.anchor: Tensor | None = None  # [P] the anchor's gradient so far in this step
        self.shares: list[Mapping[Over, float]] = [WHOLE]  # of the micro-batches of this step
        self.part = 0  # the number of the micro-batch in its step
        self.named: Mapping[str, Tensor] = {}  # the losses of this micro-batch, for people
        self.watch = Watch(recipe, phase.name)
        self.add_callback(self.watch)
        self.remove_callback(PrinterCallback)  # prints to stdout

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The recipe's losses for one batch, combined."""
        embedded = None if self.adversary is None else self.adversary.watch
        return self._loss(model, inputs, embedded)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Tensor]], Any]:
        """The micro-batches of a step; notes how much of it each holds."""
        found: tuple[list[dict[str, Tensor]], Any] = super().get_batch_samples(*args, **kwargs)
        self.shares, self.part = shares(found[0]), 0
        return found

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward; with an adversary a second time on moved embeddings.

        Raises ExitkitError: a loss is NaN or infinite. (The one read from the device that the stock trainer would make
        to leave such losses out of its reports.)
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise ExitkitError(self._diverged(loss))
        if self.adversary is not None:
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                moved = self._loss(model, inputs, self.adversary.perturb)
            self.accelerator.backward(moved / self.current_gradient_accumulation_steps)
        if self.accelerator.sync_gradients:
            self._settle_conflict()
        self.part += 1
        return loss

    def _diverged(self, loss: Tensor) -> str:
        bad = {name: value for name, value in self.named.items() if not torch.isfinite(value).all()}
        which = (
            ", ".join(f"'{name}' is {float(value)}" for name, value in bad.items()) or f"all together are {float(loss)}"
        )
        return diverged(self.phase.name, f"at step {self.state.global_step + 1}, of its losses {which}")

    def _loss(
        self, model: nn.Module, inputs: Mapping[str, Tensor], embedded: Callable[[Stream], Stream] | None
    ) -> Tensor:
        batch = {name: value for name, value in inputs.items() if name not in OF_ROWS}
        progress = self.state.global_step / max(1, self.state.max_steps)
        between, notes, lesson = self._hook("between", progress=progress), None, None
        if self.tutor is not None:
            notes = self.tutor.notes(self.phase.name)
            embedded, between = _also(embedded, between, notes)
        said = model(
            **batch, embedded=embedded, between=between, onward=self._hook("onward", progress=progress, part=self.part)
        )
        if self.tutor is not None and notes is not None:
            lesson = self.tutor.lesson(self.phase.name, inputs["row"], batch, notes)
        labels, labelled = inputs.get("labels"), inputs.get("labelled")
        if labels is not None and "words" in batch:
            labels = labels[labels != NO_LABEL]  # [U]
            labelled = None if labelled is None else labelled[units_of(batch).sequence]
        seen = EveryExit(
            logits=said.logits,
            labels=labels,
            layers=self.model.exits,
            task=self.task,
            weights=None if self.weights is None else self.weights.to(said.logits.device),
            features=said.features,
            step=self.state.global_step,
            model=self.model,
            notes=said.notes,
            live=said.live,
            labelled=None if labelled is None else labelled.bool(),
            lesson=lesson,
            solved=inputs.get("solved"),
        )
        self.watch.see(seen)
        losses = self.recipe.losses(self.phase.name, seen)
        self.named = {name: loss.detach() for name, loss in losses.items()}
        share = self.shares[self.part]
        if share is not WHOLE:
            over = {name: self.recipe.means_over(self.phase.name, name) for name in losses}
            losses = {name: loss * share[over[name]] for name, loss in losses.items()}
        total = self.recipe.combine(losses)
        if self.conflict is not None:
            self._add_anchor(losses)
        return total

    def _hook(self, name: str, **more: float) -> Callable[..., Any] | None:
        """A recipe's hook for this phase; None when it does not have one, which costs nothing."""
        hook = getattr(self.recipe, name)
        if getattr(type(self.recipe), name) is getattr(Recipe, name):
            return None
        if "part" in more and "part" not in inspect.signature(hook).parameters:
            del more["part"]
        return partial(hook, self.phase.name, self.model, **more)

    def _add_anchor(self, losses: Mapping[str, Tensor]) -> None:
        """Add the anchor's gradient of this micro-batch to that of the step."""
        assert self.conflict is not None
        anchor = torch.stack([loss for name, loss in losses.items() if name in self.conflict.anchor]).sum()
        gradients = torch.autograd.grad(anchor, self.conflict.parameters, retain_graph=True, allow_unused=True)
        flat = torch.cat(
            [
                torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
                for parameter, gradient in zip(self.conflict.parameters, gradients, strict=True)
            ]
        ).float()
        flat = flat / self.current_gradient_accumulation_steps
        self.anchor = flat if self.anchor is None else self.anchor + flat

    def _settle_conflict(self) -> None:
        """Write the joined gradient, once the step is complete and before it is clipped."""
        if self.conflict is None or self.anchor is None:
            return
        parameters = self.conflict.parameters
        both = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]).float()
        joined = self.conflict.join(self.anchor, both - self.anchor)
        for parameter, part in zip(parameters, torch.split(joined, [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        self.anchor = None

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As stock, with one message where a disk is full: the optimizer's state is twice as large as the weights."""
        with artifact.writing(Path(self.args.output_dir)), _no_word_of_file_times():
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Weights only: the stock method adds the arguments as a pickle."""
        folder = output_dir or self.args.output_dir
        os.makedirs(folder, exist_ok=True)
        weights = self.model.state_dict() if state_dict is None else state_dict
        save_file(
            {name: value.clone().contiguous() for name, value in weights.items()},  # recipes may share modules
            os.path.join(folder, "model.safetensors"),
            metadata={"format": "pt"},
        )


@contextmanager
def _no_word_of_file_times() -> Iterator[None]:
    """Checkpoints written within a second are told apart by their numbers: no news to anybody, so no warning."""

    def other(record: logging.LogRecord) -> bool:
        return "mtime may not be reliable" not in record.getMessage()

    notices = logging.getLogger("transformers.trainer_utils")
    notices.addFilter(other)
    try:
        yield
    finally:
        notices.removeFilter(other)


WHOLE: Mapping[Over, float] = {"units": 1.0, "tokens": 1.0, "pairs": 1.0, "batch": 1.0}
"""Of a step's only micro-batch."""


def shares(parts: Sequence[Mapping[str, Tensor]]) -> list[Mapping[Over, float]]:
    """How much more each micro-batch of a step holds than they do on average, by what losses are means over.

    The trainer divides by the number of micro-batches, so means over micro-batches times this add up to the step's.
    """
    if len(parts) < 2:
        return [WHOLE] * len(parts)
    counts: list[dict[Over, int]] = []
    for part in parts:
        lengths = part["attention_mask"].sum(dim=1)
        units = len(units_of(dict(part)).sequence)
        counts.append({"units": units, "tokens": int(lengths.sum()), "pairs": int(lengths.square().sum())})
    totals = {over: sum(count[over] for count in counts) for over in counts[0]}
    return [{**WHOLE, **{over: count[over] * len(parts) / max(totals[over], 1) for over in count}} for count in counts]


def diverged(phase: str, what: str) -> str:
    """The message for a training that makes nothing of its model any more."""
    return (
        f"training diverged in phase '{phase}': {what}. Nothing was saved. Lower the learning rates (--set "
        "recipe.learning_rate=2e-5; in distill method.learning_rate), or check the model's weights and the recipe's "
        "losses for NaN."
    )


class Watch(TrainerCallback):  # type: ignore[misc]
    """Averages what a recipe watches from one report to the next, and passes on its warnings."""

    def __init__(self, recipe: Recipe, phase: str) -> None:
        self.recipe, self.phase = recipe, phase
        self.sums: dict[str, Tensor] = {}
        self.batches: dict[str, int] = {}
        self.said: set[str] = set()

    def see(self, seen: EveryExit) -> None:
        """One batch. Nothing is read from the device here."""
        for name, value in self.recipe.watched(self.phase, seen).items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.batches[name] = self.batches.get(name, 0) + 1

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A report is due; at the end of the phase comes a last one."""
        averages = {name: float(total) / self.batches[name] for name, total in self.sums.items()}
        self.sums, self.batches = {}, {}
        for remark in self.recipe.remarks(self.phase, averages) if averages else ():
            if remark not in self.said:
                log.warning("phase '%s': %s", self.phase, remark)
            self.said.add(remark)


def _also(
    embedded: Callable[[Stream], Stream] | None, between: Callable[..., Any] | None, notes: Internals
) -> tuple[Callable[[Stream], Stream], Callable[..., Stream | Passed]]:
    """Hooks that do what they did and then take notes."""

    def below(stream: Stream) -> Stream:
        return notes.embedded(stream if embedded is None else embedded(stream))

    def above(index: int, before: Stream, after: Stream) -> Stream | Passed:
        passed = after if between is None else between(index, before, after)
        notes.between(index, before, passed.onward if isinstance(passed, Passed) else passed)
        return passed

    return below, above


class ShowProgress(TrainerCallback):  # type: ignore[misc]
    """Moves a progress bar, with the loss beside it."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self.done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step."""
        self.advance(state.global_step - self.done)
        self.done = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """The mean loss since the last report."""
        if logs and "loss" in logs:
            self.advance(0, note=f"loss {float(logs['loss']):.3f}")


def arguments(
    folder: Path, phase: Phase, *, seed: int, bf16: bool, device: torch.device, extra: Mapping[str, Any]
) -> TrainingArguments:
    """TrainingArguments of a phase; `extra` is what the user wrote under `training:`."""
    known = TrainingArguments.__dataclass_fields__
    for name in extra:
        if name in OURS:
            raise UsageError(f"training.{name}: exitkit has a setting of its own for this.")
        if name not in known:
            raise UsageError(one_of("field of training", name, known))
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 32,
        "warmup_steps": 0.06,  # below 1: a fraction of all steps
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "linear",
        "logging_steps": 25,
        "logging_nan_inf_filter": False,  # such a loss ends the training
        "save_strategy": "steps",
        "save_steps": 0.2,  # likewise a fraction
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
        **extra,
    }
    try:
        return TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=phase.epochs,
            seed=seed,
            bf16=bf16,
            use_cpu=device.type == "cpu",
            remove_unused_columns=False,
            label_names=["labels"],
            **settings,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"training: {' '.join(str(error).split())}") from None


def optimizer(phase: Phase, model: ExitModel, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over the phase's groups; biases and norms do not decay. Everything in no group is frozen."""
    trainable = {id(p) for group in phase.groups for p in group.parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trainable)
    groups = []
    for group in phase.groups:
        for decays in (True, False):
            parameters = [p for p in group.parameters if (p.dim() > 1) == decays]
            groups.append(
                {
                    "params": parameters,
                    "lr": group.learning_rate,
                    "weight_decay": weight_decay if decays else 0.0,
                }
            )
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def run_phase(
    model: ExitModel,
    recipe: Recipe,
    phase: Phase,
    args: TrainingArguments,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    advance: Advance,
    resume_from: Path | None,
    task: Task,
    weights: Tensor | None = None,
    adversary: FastGradient | None = None,
    tutor: Tutor | None = None,
) -> dict[str, float]:
    """Train one phase. Returns the trainer's own metrics (`train_runtime` in seconds, `train_samples_per_second`)."""
    trainer = RecipeTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collator(tokenizer),
        optimizers=(optimizer(phase, model, args.weight_decay), None),
        callbacks=[ShowProgress(advance)],
        recipe=recipe,
        phase=phase,
        task=task,
        weights=weights,
        adversary=adversary,
        tutor=tutor,
    )
    result = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ExitkitError(diverged(phase.name, f"the weights of {name} are NaN or infinite at its end"))
    return dict(result.metrics)
