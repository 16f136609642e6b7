from __future__ import annotations

import random

import pytest

from loadtest.measure.histogram import Histogram
from loadtest.measure.quantile_ci import order_ranks, quantile_interval, samples_needed


@pytest.mark.parametrize(("q", "count"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688)])
def test_the_smallest_number_of_samples_with_an_upper_bound(q: float, count: int) -> None:
    assert samples_needed(q) == count
    assert order_ranks(count, q)[1] == count
    assert order_ranks(count - 1, q)[1] is None


def test_ranks_equal_published_tables() -> None:
    """Hahn and Meeker print, for the median of ten, the second and the ninth: 97.9 % in all."""
    assert order_ranks(10, 0.5) == (2, 9)
    assert order_ranks(100, 0.5) == (40, 61)


def test_too_few_samples_for_the_lower_bound() -> None:
    assert order_ranks(3, 0.5) == (None, None)
    assert quantile_interval(Histogram(), 0.5) == (None, None)


@pytest.mark.parametrize(("count", "q"), [(1_000, 0.99), (400, 0.9), (50, 0.5)])
def test_the_interval_covers_the_true_quantile_as_often_as_promised(count: int, q: float) -> None:
    """Of uniform numbers the q-quantile is q. At least 95 %; the steps of the binomial make it a little more."""
    rng = random.Random(7)
    held, tries = 0, 400
    for _ in range(tries):
        histogram = Histogram()
        for _ in range(count):
            histogram.add(round(rng.random() * 1e6))
        low, high = quantile_interval(histogram, q)
        # 0.8 %: the width of a bucket.
        held += low is not None and high is not None and low * 0.992 <= q * 1e6 <= high * 1.008

    assert held / tries >= 0.93


def test_many_samples_are_no_problem() -> None:
    low, high = order_ranks(20_000_000, 0.99)

    assert low is not None
    assert high is not None
    assert 19_799_000 < low < 19_800_000 < high < 19_801_000
