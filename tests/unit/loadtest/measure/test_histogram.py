from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.measure.histogram import Histogram, bucket_middle

TIMES_US = st.lists(st.integers(0, 10**10), min_size=1, max_size=200)


def histogram(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(TIMES_US, st.floats(0, 1))
def test_a_quantile_errs_by_at_most_eight_in_a_thousand(values: list[int], q: float) -> None:
    exact = sorted(values)[max(1, ceil(q * len(values) - 1e-9)) - 1]

    assert histogram(values).quantile(q) == pytest.approx(exact, rel=0.008)


@given(TIMES_US)
def test_sum_mean_and_maximum_are_exact(values: list[int]) -> None:
    made = histogram(values)

    assert (made.count, made.total, made.largest) == (len(values), sum(values), max(values))
    assert made.mean == sum(values) / len(values)
    assert made.quantile(1) == pytest.approx(max(values), rel=0.008)
    assert made.quantile(1) <= max(values)


@given(TIMES_US, TIMES_US)
def test_merged_histograms_equal_one_of_all_values(some: list[int], others: list[int]) -> None:
    merged = histogram(some)
    merged.merge(histogram(others))

    assert merged.to_dict() == histogram(some + others).to_dict()
    assert merged.count == len(some) + len(others)


@given(TIMES_US)
def test_a_histogram_survives_its_document(values: list[int]) -> None:
    made = histogram(values)
    again = Histogram.from_dict(made.to_dict())

    assert again.to_dict() == made.to_dict()
    assert again.count == made.count


def test_without_values_there_is_no_quantile_and_no_mean() -> None:
    assert Histogram().quantile(0.5) is None
    assert Histogram().quantile_ms(0.5) is None
    assert Histogram().mean is None


def test_a_negative_value_counts_as_zero() -> None:
    made = histogram([-5])

    assert (made.quantile(1), made.total) == (0.0, 0)


def test_below_128_us_every_value_has_a_bucket_of_its_own() -> None:
    made = histogram(list(range(128)))

    assert sorted(made.buckets) == list(range(128))
    assert [bucket_middle(bucket) for bucket in sorted(made.buckets)] == [float(value) for value in range(128)]
