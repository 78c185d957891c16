"""Teachers: finished models whose answers, and what leads to them, a student learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from exitkit.artifacts import artifact, pretrained
from exitkit.data.batches import limit
from exitkit.engine import layout
from exitkit.engine.heads import choose_pooling
from exitkit.engine.loop import full_pass
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Batch
from exitkit.errors import ExitkitError, UsageError
from exitkit.plugins import Registry
from exitkit.tasks import Classification, Regression, Tagging, Task, task
from exitkit.training.checkpoint import check_config, check_files, check_weights, fitting_tokenizer
from exitkit.training.start import classes_of, content_of, kind_of, open_checkpoint, starting_model


@dataclass(frozen=True)
class Teacher:
    """A model that answers, in evaluation mode, with nothing in it that learns."""

    source: str
    model: ExitModel  # with its last exit only: exits below it answer nothing here
    whole: ExitModel  # with the exits that it came with; the same weights
    tokenizer: PreTrainedTokenizerBase
    task: Task
    max_length: int
    order: tuple[int, ...] | None = None  # columns of its logits in the order of the first teacher's labels

    def content(self, how_it_reads: bool = False) -> str:
        """16 hex digits over what it answers with, weights and config, not names and places.

        Its tokenizer is in them where `how_it_reads` says so; what it makes of rows may stand beside them instead.
        """
        tokenizer = self.tokenizer if how_it_reads else None
        return content_of(self.model.stock, tokenizer, repr((self.order, self.max_length)))

    def logits(self, found: Tensor) -> Tensor:
        """Logits [..., C] in the order of the first teacher's labels."""
        return found if self.order is None else found[..., list(self.order)]

    @torch.no_grad()
    def answer(self, batch: Batch) -> Tensor:
        """Logits [U, C] of a padded batch in fp32."""
        return self.logits(full_pass(self.model, batch).logits[-1].float())


def load_teachers(
    sources: Sequence[str], registry: Registry, device: torch.device, max_length: int | None
) -> list[Teacher]:
    """Load teachers in fp32; answers of the later ones are put in the order of the first one's labels.

    Args:
        sources: artifacts, or folders or ids of fine-tuned checkpoints.
        registry: knows the encoder families.
        device: where they run.
        max_length: tokens per row, or None for each one's own.

    Raises:
        UsageError: not there, not fine-tuned, or teachers of different tasks or labels.
        ExitkitError: weights that cannot be read, or that hold NaN.
    """
    if len({Path(source).resolve() if Path(source).exists() else source for source in sources}) < len(sources):
        raise UsageError(f"--teacher: the same one is named twice: {', '.join(sources)}.")
    teachers = [_load(source, registry, device, max_length) for source in sources]
    return [teachers[0], *(_in_order(teacher, teachers[0]) for teacher in teachers[1:])]


def load_encoder(
    source: str, what: Task, registry: Registry, device: torch.device, max_length: int | None, option: str
) -> Teacher:
    """A model in fp32 that is looked into and answers nothing, whatever it was trained for: its head is all zeros.

    Args:
        source: folder or id.
        what: the task, which says what units are.
        registry: knows the encoder families.
        device: where it runs.
        max_length: tokens per row, or None for all that it can take.
        option: what `source` was given with.

    Raises:
        UsageError: no such model, or an unknown family.
        ExitkitError: weights that cannot be read, or that hold NaN.
    """
    begun = starting_model(source, what, [], "mean", registry, option=option)
    model = begun.model.to(device).eval().requires_grad_(False)
    for parameter in model.parts()["heads"]:
        parameter.zero_()
    longest = limit(begun.tokenizer, model.stock.config, max_length)
    return Teacher(source, model, model, begun.tokenizer, what, longest)


def _load(source: str, registry: Registry, device: torch.device, max_length: int | None) -> Teacher:
    if artifact.is_artifact(Path(source)) or source.rstrip("/").endswith(".partial"):
        found = artifact.read(Path(source), registry, device)
        whole, tokenizer, what, longest = found.model, found.tokenizer, found.task, found.card.max_length
    else:
        whole, tokenizer, what = _checkpoint(source, registry, device)
        longest = limit(tokenizer, whole.stock.config)
    for name, value in whole.stock.named_parameters():
        if not torch.isfinite(value).all():
            raise ExitkitError(f"--teacher {source}: weight {name} holds NaN or infinite values.")
    whole.requires_grad_(False)
    last = ExitModel(whole.stock, type(whole.encoder), [whole.shape.layers], whole.pooling, whole.shape.scale).eval()
    chosen = longest if max_length is None else limit(tokenizer, whole.stock.config, max_length)
    return Teacher(source, last, whole, tokenizer, what, chosen)


def _checkpoint(
    source: str, registry: Registry, device: torch.device
) -> tuple[ExitModel, PreTrainedTokenizerBase, Task]:
    config, tokenizer = open_checkpoint(source, "--teacher", registry=registry)
    what = _task(source, config)
    encoder = registry.encoder(config.model_type)
    check_files(source, "--teacher")
    check_config(source, config, encoder, "--teacher")
    try:
        stock, report = pretrained.load_stock(source, what.kind, config)
    except ExitkitError:
        raise
    except Exception as error:
        raise ExitkitError(f"--teacher {source}: cannot be loaded: {' '.join(str(error).split())}") from error
    if report["missing_keys"]:
        raise UsageError(
            f"--teacher {source}: the checkpoint lacks weights, such as {sorted(report['missing_keys'])[0]}, so that "
            "its answers would be random. Fine-tune it first: exitkit train."
        )
    check_weights(source, stock, report, "--teacher")
    tokenizer = fitting_tokenizer(source, tokenizer, stock, "--teacher")
    stock.config.problem_type = what.problem_type
    model = ExitModel(stock, encoder, [len(encoder(stock).blocks)], choose_pooling("auto", what.kind))
    model = model.to(device).eval()
    layout.by_input(model)  # as an artifact's weights lie, so that both give the same numbers
    return model, tokenizer, what


def _task(source: str, config: PreTrainedConfig) -> Task:
    """What a fine-tuned checkpoint answers."""
    tags = classes_of(config, Tagging.kind)
    if tags is not None:
        return Tagging(tags)
    labels = classes_of(config, Classification.kind)
    if labels is None:
        kinds = ", ".join(config.architectures or ["of no known kind"])
        raise UsageError(
            f"--teacher {source}: it is no fine-tuned classifier or tagger ({kinds}). Give a model that exitkit "
            "trained, or a checkpoint whose architecture ends in ForSequenceClassification or ForTokenClassification; "
            "exitkit train makes one of an encoder."
        )
    kind = kind_of(config)
    return task(kind, () if kind == Regression.kind else labels)


def _in_order(teacher: Teacher, first: Teacher) -> Teacher:
    """A further teacher, whose answers come in the order of the first one's."""
    if teacher.task.kind != first.task.kind:
        raise UsageError(
            f"--teacher {teacher.source} is for {teacher.task.kind}, and {first.source} for {first.task.kind}. "
            "Teachers of one student must have the same task."
        )
    if sorted(teacher.task.labels) != sorted(first.task.labels):
        raise UsageError(
            f"--teacher {teacher.source} has the labels {', '.join(teacher.task.labels)}, and {first.source} has "
            f"{', '.join(first.task.labels)}. Teachers of one student must have the same labels."
        )
    if teacher.task.labels == first.task.labels:
        return teacher
    return replace(teacher, order=tuple(teacher.task.labels.index(label) for label in first.task.labels))
