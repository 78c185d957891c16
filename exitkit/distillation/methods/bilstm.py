"""Method `bilstm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedConfig

from exitkit.distillation.losses import units_loss
from exitkit.distillation.then_answers import ThenAnswers
from exitkit.distiller import Distiller, Reads, Students
from exitkit.engine.encoders.modeling_bilstm import BiLSTMConfig
from exitkit.engine.heads import Pooling
from exitkit.errors import UsageError, one_of
from exitkit.hookspecs import Register, hookimpl
from exitkit.recipe import EveryExit

if TYPE_CHECKING:
    from exitkit.engine.model import ExitModel
    from exitkit.policy import Shape

PROJECTION = "projection"
VECTORS: tuple[Pooling, ...] = ("mean", "cls")
MOST_LAYERS = 4
"""Plain stacks of LSTMs work well up to four layers, barely with six (1609.08144, section 3.1)."""


@dataclass(frozen=True)
class BiLSTM(ThenAnswers):
    """A BiLSTM learns the teacher's sentence vectors, for which no task is needed; then its exits learn the answers.

    Phase `sentence`: MSE of W·(the student's sentence vector) and the teacher's, without labels. Phase `answers`: as
    `logits`, so that labels join there.

    Sentence representation approximation (2004.03097): a student that is no transformer, W a learned layer. The
    student's vector is what its last head reads, the mean of its last states. The teacher's is the mean of its last
    states too, or with `vector=cls` that of its first token. In tagging vectors are those of words: what the student's
    last head reads, its first piece, and the mean of the teacher's pieces or its first one.

    Where it differs: the paper's vectors come from a BERT that knows no task, and the student is fine-tuned on labels;
    here they come from the teacher, unless `sentence_encoder` names another model, and the second phase hands on the
    teacher's answers, so that it needs no labels either. Texts of a pair are read as one. The student has exits after
    every layer.
    """

    first: ClassVar[str] = "sentence"
    looks_into: ClassVar[str | None] = "sentence_encoder"

    learning_rate: float = 1e-3
    answers_learning_rate: float = 5e-4
    head_learning_rate: float = 1e-3
    vector: Pooling = "mean"
    sentence_encoder: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vector not in VECTORS:
            raise UsageError(one_of("method.vector", str(self.vector), VECTORS))

    def students(self, teacher: ExitModel) -> Students:
        """BiLSTMs over the teacher's tokens, two layers as wide as the teacher's if nothing is said."""
        vocabulary, narrow = teacher.stock.get_input_embeddings().weight.shape
        padding = teacher.stock.config.pad_token_id

        def config(layers: int, width: int) -> PreTrainedConfig:
            return BiLSTMConfig(
                vocab_size=vocabulary,
                embedding_size=narrow,
                hidden_size=width,
                num_hidden_layers=layers,
                pad_token_id=padding,
            )

        return Students(
            config=config,
            layers=2,
            most_layers=MOST_LAYERS,
            width=teacher.shape.width + teacher.shape.width % 2,
            step=2,
            why="half of a BiLSTM's features come from each direction",
        )

    def inside(self, student: Shape, teacher: Shape) -> Reads:
        """The vectors of sentences, or of words, after the last layers."""
        return Reads(answers=False, pooled=((student.layers, teacher.layers),), pooling=self.vector)

    def scaffold(self, student: Shape, teacher: Shape) -> Mapping[str, nn.Module]:
        """A projection, between equal widths too: an LSTM's states are within ±1, a teacher's are not."""
        return {PROJECTION: nn.Linear(student.width, teacher.width)}

    def inner_losses(self, seen: EveryExit) -> Mapping[str, Tensor]:
        """That of vectors."""
        assert seen.lesson is not None
        assert seen.model is not None
        ((own, theirs),) = seen.lesson.pooled
        return {"sentence": units_loss(own, theirs, seen.model.scaffold[PROJECTION])}


@hookimpl
def register_distillers(register: Register[Distiller]) -> None:
    """Offer `bilstm`."""
    register("bilstm", BiLSTM)
