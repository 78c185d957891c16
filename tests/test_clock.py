"""The stopwatch: who runs when, and how ratios and their intervals come from seconds. Nothing is timed here."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from exitkit.measuring.clock import WARM_UPS, Times, interleaved, turn_of

CPU = torch.device("cpu")


def order_of(contenders: str, batches: int, rounds: int, turn: int) -> list[tuple[str, int]]:
    """Who answered which batch, in order, without the warm-up."""
    seen: list[tuple[str, int]] = []
    runners = {name: (lambda batch, name=name: seen.append((name, batch))) for name in contenders}
    interleaved(runners, range(batches), rounds, CPU, turn=turn)
    return seen[len(contenders) * min(WARM_UPS, batches) :]


def test_contenders_take_turns_of_some_batches() -> None:
    said = order_of("ab", batches=5, rounds=1, turn=2)
    turns = [said[0:4], said[4:8], said[8:10]]
    assert [{batch for _, batch in turn} for turn in turns] == [{0, 1}, {2, 3}, {4}]
    for turn in turns[:2]:
        assert [name for name, _ in turn] in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
        assert [batch for _, batch in turn[:2]] == [batch for _, batch in turn[2:]] == sorted({b for _, b in turn})


def test_nobody_is_always_first_or_always_after_the_same_other() -> None:
    """Three that only take turns in being first have the same one before them two times of three."""
    said = [name for name, _ in order_of("abc", batches=600, rounds=1, turn=1)]
    assert max(Counter(said[::3]).values()) < 0.5 * 600
    before = Counter(itertools.pairwise(said))
    assert max(before.values()) < 0.6 * 600, before


@pytest.mark.parametrize(("contenders", "batches", "rounds", "turn"), [(1, 1, 1, 1), (3, 7, 2, 2), (4, 9, 3, 12)])
def test_everybody_answers_every_batch_once_a_round(contenders: int, batches: int, rounds: int, turn: int) -> None:
    names = "abcd"[:contenders]
    said = order_of(names, batches, rounds, turn)
    assert Counter(said) == {(name, batch): rounds for name in names for batch in range(batches)}


@pytest.mark.parametrize(
    ("batch_size", "batches", "turn"),
    [(32, 100, 1), (64, 100, 1), (1, 1000, 32), (1, 100, 6), (1, 10, 1), (8, 100, 4), (20, 100, 1)],
)
def test_a_turn_is_32_rows_unless_that_leaves_few_turns(batch_size: int, batches: int, turn: int) -> None:
    assert turn_of(batch_size, batches) == turn


def test_a_speedup_is_a_ratio_of_sums_of_medians() -> None:
    times = Times({"slow": np.array([[4.0, 2.0], [6.0, 2.0], [50.0, 2.0]]), "fast": np.array([[1.0, 3.0]] * 3)})
    assert times.speedup("fast", "slow") == (6 + 2) / (1 + 3)


def test_batches_of_a_turn_are_drawn_together() -> None:
    """Two turns, each of one slow and one fast batch: whichever are drawn, the ratio is the same."""
    seconds = {"full": np.array([[3.0, 1.0, 3.0, 1.0]]), "exits": np.ones((1, 4))}
    assert Times(seconds, turn=2).speedup_interval("exits", "full") == (2.0, 2.0)
    low, high = Times(seconds).speedup_interval("exits", "full")
    assert low < 2 < high


def test_noise_between_rounds_widens_the_interval() -> None:
    seconds = {"full": np.array([[2.0] * 8, [2.0] * 8, [3.0] * 8]), "exits": np.ones((3, 8))}
    low, high = Times(seconds).speedup_interval("exits", "full")
    assert low == 2.0 < high
