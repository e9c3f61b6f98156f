"""Figures of answers and how sure they are: exact match, word F1, bits a byte, bootstrap intervals over rows."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 2000  # resamples of a bootstrap
SEED = 20_210_913  # of the resamples: the same rows give the same interval
AT_ONCE = 100  # resamples in memory at a time

Interval = tuple[float, float]
Ratios = npt.NDArray[np.float64]  # [n, 2]: what is summed over n rows, above and below the line

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """The words of an answer: in lower case, without punctuation and English articles (Rajpurkar et al., 2016)."""
    kept = (character for character in text.lower() if not unicodedata.category(character).startswith("P"))
    return _ARTICLES.sub(" ", "".join(kept)).split()


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both have the same words in the same order, else 0.0."""
    return float(words(answer) == words(reference))


def word_f1(answer: str, reference: str) -> float:
    """Harmonic mean of the shares of words that an answer and its reference have in common (Rajpurkar et al., 2016).

    Two texts without a word agree.
    """
    said, wanted = words(answer), words(reference)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def ratio(rows_n2: Ratios) -> float:
    """The sum above the line by the sum below it."""
    above, below = rows_n2.sum(axis=0)
    return float(above / below)


def interval(rows_n2: Ratios) -> Interval | None:
    """95 % of the ratio over resampled rows (percentile bootstrap; Efron and Tibshirani, 1993). None below 2 rows."""
    return None if len(rows_n2) < 2 else _middle(_resampled([rows_n2])[0])


def difference(first_n2: Ratios, second_n2: Ratios) -> tuple[float, Interval | None]:
    """Ratio of the first less that of the second, with 95 % of it where the same rows are drawn for both (paired)."""
    value = ratio(first_n2) - ratio(second_n2)
    if len(first_n2) < 2:
        return value, None
    first, second = _resampled([first_n2, second_n2])
    return value, _middle(first - second)


def _resampled(contestants: Sequence[Ratios]) -> list[npt.NDArray[np.float64]]:
    """The ratio of each resample [DRAWS], by contestant; resample i holds the same rows for all of them."""
    n = len(contestants[0])
    draw = np.random.default_rng(SEED)
    found: list[list[npt.NDArray[np.float64]]] = [[] for _ in contestants]
    for _ in range(0, DRAWS, AT_ONCE):
        times = draw.multinomial(n, np.full(n, 1 / n), size=AT_ONCE).astype(np.float64)
        for place, rows in enumerate(contestants):
            sums = times @ rows
            found[place].append(sums[:, 0] / sums[:, 1])
    return [np.concatenate(parts) for parts in found]


def _middle(values: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
