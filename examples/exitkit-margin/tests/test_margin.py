"""The policy keeps the contract, and leaves when it says."""

import torch
from exitkit_margin import Margin

from exitkit.testing import check_policy, evidence


def test_margin_keeps_the_contract():
    check_policy(Margin, "margin")


def test_a_unit_leaves_when_its_two_best_classes_are_far_apart():
    shares = torch.tensor([[0.5, 0.4, 0.1], [0.7, 0.1, 0.2]])
    leave, _ = Margin(threshold=0.3).decide(evidence(shares.log()), {})
    assert leave.tolist() == [False, True]
