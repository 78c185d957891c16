"""The method keeps the contract, and learns from the teacher's best class only."""

import torch
from exitkit_echo import Echo

from exitkit import EveryExit, Lesson, task
from exitkit.testing import check_distiller


def test_echo_keeps_the_contract():
    check_distiller(Echo, "echo")


def test_only_the_most_probable_class_of_units_that_the_teacher_sees_counts():
    logits = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    lesson = Lesson(torch.tensor([[0.1, 0.2], [5.0, -5.0], [0.0, 0.0]]), answered=torch.tensor([True, True, False]))
    seen = EveryExit(logits, None, layers=(1, 2), task=task("classification", ("no", "yes")), lesson=lesson)
    total = sum(Echo().losses("answers", seen).values())
    wanted = torch.nn.functional.cross_entropy(logits[:, :2].flatten(0, 1), torch.tensor([1, 0, 1, 0]))
    torch.testing.assert_close(total, wanted)
