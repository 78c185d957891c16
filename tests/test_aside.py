"""Rows set aside are a sample of all, and no text of theirs is among the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from exitkit.data import aside
from exitkit.data.splits import texts, training_and_calibration

FREQUENT = {"great!": "b", "ok": "b", "bad": "a", "awful": "a", "fine": "b"}


def traffic(rows: int, frequent: float, seed: int = 0) -> list[tuple[str, str]]:
    """Rows of which a share is one of five short texts, and the others are there once."""
    random = np.random.default_rng(seed)
    short = random.choice(list(FREQUENT), rows).tolist()
    return [
        (short[i], FREQUENT[short[i]])
        if random.random() < frequent
        else (f"a long text, number {i}", "ab"[random.integers(2)])
        for i in range(rows)
    ]


def short_share(rows: Any) -> float:
    return float(np.mean([text[0] in FREQUENT for text in texts(rows)]))


def test_a_few_frequent_texts_are_as_frequent_among_the_rows_set_aside() -> None:
    data = training_and_calibration(traffic(4000, 0.7))
    assert len(data.calibration) == 400
    assert short_share(data.calibration) == pytest.approx(0.7, abs=0.03)
    assert short_share(data.train) > 0.55
    assert np.mean(data.calibration.data["label"][:]) == pytest.approx(0.57, abs=0.03)  # as in the data
    assert not set(texts(data.calibration)) & set(texts(data.train))


def test_what_is_left_over_of_frequent_texts_is_counted_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "exitkit")
    data = training_and_calibration(traffic(4000, 0.7))
    unused = 4000 - len(data.train) - len(data.calibration)
    assert "set aside for calibration: 400 of 4000 rows" in caplog.text
    assert f"{unused} more copies of frequent texts" in caplog.text
    assert "WARNING" not in caplog.text


def test_one_text_that_is_a_third_of_the_rows_is_learned_and_its_lack_is_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = [("yes", "a") if i % 10 < 3 else (f"text {i}", "ab"[i % 2]) for i in range(2000)]
    data = training_and_calibration(rows)
    assert Counter(texts(data.train))[("yes",)] == 600
    assert len(data.calibration) == 200
    assert "30 % of the training rows are texts that stand there 512 times or more, but 0 %" in caplog.text
    assert "--data" in caplog.text


def test_frequencies_that_fall_slowly_are_kept_without_losing_a_row() -> None:
    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, 5001)
    numbers = random.choice(5000, 10_000, p=weights / weights.sum())
    parted = aside.part(numbers, numbers % 2, 1000, seed=1)
    assert len(parted.aside) == 1000
    assert len(parted.kept) == 9000
    copies = np.bincount(numbers)[numbers]
    for often in (2, 8):
        assert (copies[parted.aside] >= often).mean() == pytest.approx((copies >= often).mean(), abs=0.03)
    assert (numbers[parted.aside] % 2).mean() == pytest.approx((numbers % 2).mean(), abs=0.01)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labelled", [True, False])
def test_where_no_text_repeats_the_rows_are_those_of_a_plain_draw(seed: int, labelled: bool) -> None:
    labels = np.arange(500) % 3 if labelled else None
    parted = aside.part(np.arange(500), labels, 50, seed)
    kept, drawn = train_test_split(np.arange(500), test_size=50, random_state=seed, stratify=labels)
    assert parted.aside.tolist() == sorted(drawn)
    assert parted.kept.tolist() == sorted(kept)


def test_a_few_repeated_texts_leave_the_others_where_a_plain_draw_puts_them() -> None:
    numbers = np.arange(2000)
    numbers[1990:] = np.arange(10)  # ten texts stand there twice
    parted = aside.part(numbers, None, 200, seed=0)
    _, drawn = train_test_split(np.arange(2000), test_size=200, random_state=0)
    assert len(set(parted.aside.tolist()) & set(drawn.tolist())) >= 195


def test_blanks_and_the_spelling_of_accents_make_no_other_text() -> None:
    source = [(text, "ab"[i % 2]) for i in range(100) for text in (f" caf\u00e9  {i}", f"cafe\u0301 {i}\n")]
    data = training_and_calibration(source)
    assert len(set(texts(data.train)) | set(texts(data.calibration))) == 100
    assert not set(texts(data.calibration)) & set(texts(data.train))


# Texts with how often each stands there and its label.
SOURCES = st.lists(
    st.tuples(st.one_of(st.integers(1, 3), st.integers(1, 60)), st.integers(0, 2)), min_size=2, max_size=80
)


@given(SOURCES, st.integers(0, 10), st.booleans())
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
def test_no_text_is_on_both_sides_and_rows_set_aside_are_hardly_more_than_wanted(
    source: list[tuple[int, int]], seed: int, labelled: bool
) -> None:
    numbers = np.repeat(np.arange(len(source)), [copies for copies, _ in source])
    labels = np.repeat([label for _, label in source], [copies for copies, _ in source])
    numbers = np.random.default_rng(seed).permutation(len(source))[numbers]
    size = max(1, round(0.1 * len(numbers)))
    stratify = labels if labelled and np.unique(labels, return_counts=True)[1].min() >= 2 and size >= 3 else None
    if len(numbers) < 10:
        return
    parted = aside.part(numbers, stratify, size, seed)
    again = aside.part(numbers, stratify, size, seed)
    assert parted.kept.tolist() == again.kept.tolist()
    assert parted.aside.tolist() == again.aside.tolist()
    assert not set(numbers[parted.kept]) & set(numbers[parted.aside])
    assert len(parted.aside) <= 1.1 * size + 3
    assert len(np.unique(parted.aside)) == len(parted.aside)
    if stratify is not None:
        for label in np.unique(labels):
            assert (labels[parted.aside] == label).sum() <= 1.1 * size * (labels == label).mean() + 1
            assert (labels[parted.kept] == label).any(), "every class is learned"


@given(st.integers(0, 20))
@settings(deadline=None, max_examples=10)
def test_with_many_texts_shares_of_labels_and_frequencies_are_close(seed: int) -> None:
    random = np.random.default_rng(seed)
    copies = random.choice([1, 1, 1, 2, 3, 5, 9], 600)
    numbers = np.repeat(np.arange(600), copies)
    labels = np.repeat(random.integers(0, 3, 600), copies)
    size = round(0.1 * len(numbers))
    parted = aside.part(numbers, labels, size, seed)
    assert abs(len(parted.aside) - size) <= 3
    often = copies[numbers]
    for edge in (2, 4, 8):
        assert (often[parted.aside] >= edge).mean() == pytest.approx((often >= edge).mean(), abs=0.06)
    for label in range(3):
        assert (labels[parted.aside] == label).mean() == pytest.approx((labels == label).mean(), abs=0.03)
