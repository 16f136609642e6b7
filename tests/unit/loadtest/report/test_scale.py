from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.scale import Axis, Linear, Log, PercentileTail, Time, latency_axis

POSITIVE = st.floats(1e-3, 1e9)


def check(axis: Axis, values: list[float]) -> None:
    """Invariants of every axis: it covers its values, and its ticks are on it, in order, with different labels."""
    ticks = axis.ticks()
    assert all(axis.covers(value) for value in values)
    assert 2 <= len(ticks) <= 16
    assert all(-1e-9 <= place <= 1 + 1e-9 for place, _ in ticks)
    assert [place for place, _ in ticks] == sorted({place for place, _ in ticks})
    assert len({label for _, label in ticks}) == len(ticks)


@given(st.lists(POSITIVE, max_size=5))
def test_a_linear_axis_begins_at_zero_and_covers_its_values(values: list[float]) -> None:
    axis = Linear.over("x", values)

    check(axis, [0.0, *values])
    assert axis.low == 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_negative_values_extend_the_axis_below_zero(values: list[float]) -> None:
    assert all(Linear.over("x", values).covers(value) for value in values)


@given(st.lists(POSITIVE, max_size=5))
def test_a_logarithmic_axis_covers_its_values(values: list[float]) -> None:
    check(Log.over("x", values), values)


def test_zero_is_at_the_start_of_a_logarithmic_axis() -> None:
    assert Log.over("x", [1, 100]).position(0) == 0


@given(st.floats(1, 3e5))
def test_time_is_labelled_in_suitable_units(seconds: float) -> None:
    check(Time.over(seconds), [0, seconds])


@pytest.mark.parametrize(
    ("seconds", "title", "last"), [(60, "time (s)", "60"), (1800, "time (min)", "30"), (90_000, "time (h)", "25")]
)
def test_units_of_time(seconds: float, title: str, last: str) -> None:
    axis = Time.over(seconds)

    assert (axis.title, axis.ticks()[-1][1]) == (title, last)


@given(st.integers(0, 10**8))
def test_percentiles_reach_as_far_as_the_samples(count: int) -> None:
    axis = PercentileTail.over("percentile", count)

    check(axis, [0.0, 0.5])


def test_every_nine_has_the_same_width() -> None:
    axis = PercentileTail.over("percentile", 10**6)
    ticks = {label: place for place, label in axis.ticks()}

    assert list(ticks) == ["0", "50", "90", "99", "99.9", "99.99", "99.999"]
    assert ticks["99"] - ticks["90"] == pytest.approx(ticks["99.9"] - ticks["99"])
    assert axis.position(1.0) == 1


def test_a_long_tail_makes_the_axis_logarithmic() -> None:
    assert latency_axis("TTFT (ms)", [10, 150]).title == "TTFT (ms)"
    assert latency_axis("TTFT (ms)", [10, 250]).title == "TTFT (ms), log"
    assert latency_axis("TTFT (ms)", []).ticks()
