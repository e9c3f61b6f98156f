"""Figures of answers against worked examples, and intervals against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.runs.measures import difference, exact_match, interval, ratio, word_f1, words


def test_words_have_no_case_punctuation_or_articles() -> None:
    assert words("The  Cat—an ‘old’ one, sat on (a) mat.") == ["catan", "old", "one", "sat", "on", "mat"]
    assert words("Theatre and anthem") == ["theatre", "and", "anthem"]


F1 = {  # answer, reference, words in common, words of the answer, words of the reference
    "the same": ("Denver Broncos", "Denver Broncos", 2, 2, 2),
    "an article more": ("the Denver Broncos", "Denver Broncos", 2, 2, 2),
    "one word of three": ("Broncos", "Denver Broncos won", 1, 1, 3),
    "a word said twice counts once": ("no no no", "no", 1, 3, 1),
    "nothing in common": ("Panthers", "Broncos", 0, 1, 1),
    "some of both": ("green with a bell", "green with a brass bell", 3, 3, 4),
}


@pytest.mark.parametrize(("answer", "reference", "common", "said", "wanted"), F1.values(), ids=F1)
def test_word_f1_is_that_of_precision_and_recall(
    answer: str, reference: str, common: int, said: int, wanted: int
) -> None:
    precision, recall = common / said, common / wanted
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert word_f1(answer, reference) == pytest.approx(expected)
    assert word_f1(reference, answer) == pytest.approx(expected)


def test_an_answer_without_a_word_is_right_only_where_none_is_wanted() -> None:
    assert word_f1("The!", "") == 1.0
    assert word_f1("", "word") == word_f1("word", "…") == 0.0


def test_an_exact_match_is_one_of_words() -> None:
    assert exact_match(" the Broncos.", "broncos") == 1.0
    assert exact_match("Broncos Denver", "Denver Broncos") == 0.0


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios() -> None:
    assert ratio(np.array([[1.0, 1.0], [8.0, 2.0]])) == 3.0


def test_an_interval_is_the_same_each_time_and_none_of_one_row() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]])
    assert interval(rows) == interval(rows)
    assert interval(rows[:1]) is None
    assert difference(rows[:1], rows[:1]) == (0.0, None)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        below = draw.uniform(1, 9, 60)
        above = 0.7 * below + draw.normal(0, 1, 60)
        low, high = interval(np.stack([above, below], axis=1)) or (0, 0)
        held += low <= 0.7 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_a_difference_is_paired() -> None:
    """Rows that are hard for both do not blur which of the two is better."""
    draw = np.random.default_rng(3)
    hard = draw.normal(0, 10, 50)
    ones = np.ones(50)
    first, second = (np.stack([hard + draw.normal(mean, 0.1, 50), ones], axis=1) for mean in (1.0, 0.5))
    value, middle = difference(first, second)
    assert middle is not None
    assert 0.4 < middle[0] < value < middle[1] < 0.6
    wide = interval(first)
    assert wide is not None
    assert wide[1] - wide[0] > 10 * (middle[1] - middle[0])


def test_one_and_the_same_do_not_differ() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [2.0, 1.0]])
    assert difference(rows, rows) == (0.0, (0.0, 0.0))
