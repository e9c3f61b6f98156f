"""What became of generated rows and what they cost, in words and figures; a verdict by the teacher's text."""

from __future__ import annotations

import pytest

from limbeck.report.evaluation import ModelFigures
from limbeck.report.rows import plain_figures, rows_of
from limbeck.report.spending import figures_of, money, spending_text
from limbeck.report.verdict import judge

USAGE = {"calls": 164, "cached": 3, "retries": 1, "prompt_tokens": 12_400, "completion_tokens": 3_100, "cost": 0.0123}


def test_rows_are_told_in_one_sentence_and_in_figures() -> None:
    figures = {"rows": 160.0, "rejected": 4.0, "rejected.refused": 3.0, "rejected.failed": 1.0, "truncated": 12.0}
    rows = rows_of(figures | figures_of(USAGE, "USD"))
    assert rows.text == (
        "160 rows were made, 12 of them cut at max_new_tokens (their end is not trained); 4 answers kept apart: "
        "1 failed, 3 refused. The teacher: 164 calls (3 answers from the cache, 1 tried again), 12,400 tokens read, "
        "3,100 written, $0.012."
    )
    assert rows.rejected == {"refused": 3, "failed": 1}
    assert (rows.made, rows.truncated, rows.calls, rows.cost, rows.currency) == (160, 12, 164, 0.0123, "USD")
    assert plain_figures(figures | figures_of(USAGE, "USD")) == {"rows": 160.0, "rejected": 4.0, "truncated": 12.0}


def test_a_teacher_that_is_not_paid_costs_nothing_that_is_told() -> None:
    rows = rows_of({"rows": 1.0, "rejected": 0.0, "truncated": 0.0, "retokenized": 0.0})
    assert rows.text == "1 row was made."
    assert rows.calls is None


def test_what_is_spent_is_told_with_the_whole_where_that_is_known() -> None:
    figures = figures_of(USAGE, "USD")
    assert str(spending_text({**figures, "teacher.expected.USD": 0.41})).endswith("$0.012 of about $0.41")
    assert str(spending_text(figures)).endswith("$0.012")
    without = {name: value for name, value in USAGE.items() if name != "cost"}
    assert str(spending_text(figures_of(without, "USD"))).endswith("3,100 written")
    assert spending_text({"loss": 1.0}) is None
    odd = spending_text({"teacher.calls": 9.0, "teacher.unmetered": 2.0, "teacher.lost": 1.0})
    assert str(odd).startswith("9 calls (2 whose tokens are estimated, 1 lost to a crash), ")


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (0.0123, "USD", "$0.012"),
        (0, "USD", "$0.00"),
        (0.000077, "USD", "$0.000077"),
        (3.4, "EUR", "€3.40"),
        (1234.5, "CHF", "1,234.50 CHF"),
    ],
)
def test_money_is_told_with_its_currency(amount: float, currency: str, text: str) -> None:
    assert money(amount, currency) == text


@pytest.mark.parametrize(
    ("entropy", "outcome", "words"),
    [(1.0, "better", "beats"), (3.0, "worse", "does not beat"), (2.0, "mixed", "is neither better nor worse than")],
)
def test_the_teachers_text_judges_by_perplexity(entropy: float, outcome: str, words: str) -> None:
    models = {
        "untrained": ModelFigures(cross_entropy=2.0, perplexity=7.39),
        "student": ModelFigures(cross_entropy=entropy, perplexity=2.72),
    }
    verdict = judge(models, "text")  # type: ignore[arg-type]
    assert verdict.outcome == outcome
    assert verdict.text == (
        f"The student {words} the untrained student: on held-out answers that the teacher wrote, its perplexity is "
        "2.72 against 7.39 (untrained)."
    )
    assert verdict.against["untrained"].cross_entropy_change == pytest.approx(entropy - 2.0)
