"""Recipe `even`: the whole model and all exits at once, each exit weighing the same."""

from dataclasses import dataclass

from exitkit import Group, Phase, Recipe, hookimpl


@dataclass(frozen=True)
class Even(Recipe):
    """The plain mean of the task's losses over all exits. One phase, nothing frozen."""

    learning_rate: float = 5e-5
    head_learning_rate: float = 3e-4

    def phases(self, model, epochs):
        """A single phase; heads learn faster than the encoder, because they start from nothing."""
        parts = model.parts()
        groups = [Group(parts["encoder"], self.learning_rate), Group(parts["heads"], self.head_learning_rate)]
        return [Phase("all", epochs, groups)]

    def losses(self, phase, seen):
        """The task's loss at every exit, divided by their number; the trainer adds them up."""
        exits = len(seen.logits)
        return {f"exit_{number}": seen.loss(logits) / exits for number, logits in enumerate(seen.logits, start=1)}


@hookimpl
def register_recipes(register):
    """Offer `even`."""
    register("even", Even)
