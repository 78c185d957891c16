"""Distillation method `echo`: every exit learns the teacher's most probable class."""

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from exitkit import Distiller, Group, Phase, Reads, hookimpl


@dataclass(frozen=True)
class Echo(Distiller):
    """Cross-entropy against the teacher's most probable class, the mean over all exits. Labels do not count."""

    learning_rate: float = 5e-5
    head_learning_rate: float = 3e-4

    @classmethod
    def refuses(cls, shape):
        """For answers that are one of several classes."""
        return None if shape.task in ("classification", "tagging") else f"no class of {shape.task} is the most probable"

    def reads(self, phase, student, teacher):
        """Answers only, so that teachers may have any size and tokenizer."""
        return Reads()

    def phases(self, model, epochs):
        """A single phase, nothing frozen."""
        parts = model.parts()
        groups = [Group(parts["encoder"], self.learning_rate), Group(parts["heads"], self.head_learning_rate)]
        return [Phase("answers", epochs, groups)]

    def losses(self, phase, seen):
        """Words that the teacher does not see, because its tokenizer cut them off, do not count."""
        teacher, answered = seen.lesson.logits, seen.lesson.answered  # [U, C]; [U], None = all
        best = teacher.argmax(-1)
        if answered is not None:
            best = best.where(answered, -100)  # what cross_entropy leaves out
        exits, units = len(seen.logits), max(int((best >= 0).sum()), 1)
        return {
            f"taught_{number}": cross_entropy(logits.float(), best, reduction="sum") / (units * exits)
            for number, logits in enumerate(seen.logits, start=1)
        }


@hookimpl
def register_distillers(register):
    """Offer `echo`."""
    register("echo", Echo)
