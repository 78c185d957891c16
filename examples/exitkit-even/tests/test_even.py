"""The recipe keeps the contract, and its loss is what it says."""

import torch
from exitkit_even import Even

from exitkit import EveryExit, task
from exitkit.testing import check_recipe


def test_even_keeps_the_contract():
    check_recipe(Even, "even")


def test_all_exits_weigh_the_same():
    logits = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1])
    seen = EveryExit(logits, labels, layers=(1, 2, 6), task=task("classification", ("no", "yes")))
    total = sum(Even().losses("all", seen).values())
    torch.testing.assert_close(total, torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(3)))
