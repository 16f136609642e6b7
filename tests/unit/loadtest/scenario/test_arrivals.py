"""Schedules: the expected number of arrivals, at their times, the same for the same seed; worker shares lose none."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean, pstdev
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from loadtest.scenario import arrivals
from loadtest.scenario.arrivals import Load, OpenLoop, worker_share

LENGTH_S = 400.0


def make_load(**given: Any) -> OpenLoop:
    load: Any = TypeAdapter(Load).validate_python(given)
    assert isinstance(load, OpenLoop)
    return load


def times(length_s: float = LENGTH_S, seed: int = 1, **given: Any) -> list[float]:
    return list(make_load(**given).arrival_times(seed, length_s))


SHAPES: dict[str, dict[str, Any]] = {
    "poisson": {"kind": "poisson", "rate": 20},
    "constant": {"kind": "constant", "rate": 20},
    "gamma": {"kind": "gamma", "rate": 20, "cv": 2},
    "ramp": {"kind": "ramp", "start": 0, "end": 40},
    "step": {"kind": "step", "steps": [[0, 10], [100, 30], [200, 20]]},
    "spike": {"kind": "spike", "base": 15, "peak": 100, "at_s": 50, "for_s": 20},
    "sine": {"kind": "sine", "mean": 20, "amplitude": 15, "period_s": 100},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_schedule_is_ordered_seeded_and_of_the_expected_size(shape: dict[str, Any]) -> None:
    found = times(**shape)
    expected = make_load(**shape).expected_count(LENGTH_S, LENGTH_S)

    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < LENGTH_S
    assert found == times(**shape)
    # Five standard deviations of a Poisson count; gamma with cv 2 has twice as large ones.
    assert abs(len(found) - expected) < 10 * expected**0.5
    if shape["kind"] != "constant":
        assert found != times(seed=2, **shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_arrivals_follow_the_rate(shape: dict[str, Any]) -> None:
    """By quarters of the run."""
    found, load = times(**shape), make_load(**shape)
    for quarter in range(4):
        low, high = quarter * LENGTH_S / 4, (quarter + 1) * LENGTH_S / 4
        expected = load.expected_count(high, LENGTH_S) - load.expected_count(low, LENGTH_S)
        here = sum(low <= at_s < high for at_s in found)
        assert abs(here - expected) < 10 * expected**0.5, f"quarter {quarter}"


@pytest.mark.parametrize(
    ("kind", "more", "cv"), [("poisson", {}, 1.0), ("constant", {}, 0.0), ("gamma", {"cv": 2}, 2.0)]
)
def test_gaps_have_the_variation_of_their_process(kind: str, more: dict[str, Any], cv: float) -> None:
    gaps = [b - a for a, b in pairwise(times(kind=kind, rate=20, **more))]

    assert pstdev(gaps) / mean(gaps) == pytest.approx(cv, abs=0.12)


def test_a_varying_rate_can_have_constant_gaps() -> None:
    """A ramp from 0 to 2 per second over 100 s: the n-th arrival when t * t / 100 reaches n."""
    found = times(100, kind="ramp", start=0, end=2, process="constant")

    assert found == pytest.approx([(100 * number) ** 0.5 for number in range(1, 100)], abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_workers_together_send_exactly_the_schedule(shape: dict[str, Any], count: int) -> None:
    load = make_load(**shape)
    parts = [list(worker_share(load.arrival_times(1, 60), index, count)) for index in range(count)]

    assert sorted(one for part in parts for one in part) == list(enumerate(load.arrival_times(1, 60)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


WRONG: list[dict[str, Any]] = [
    {"kind": "poisson", "rate": 0},
    {"kind": "gamma", "rate": 1},
    {"kind": "ramp", "start": 0, "end": 0},
    {"kind": "step", "steps": [[1, 5]]},
    {"kind": "step", "steps": [[0, 5], [0, 6]]},
    {"kind": "step", "steps": [[0, 0]]},
    {"kind": "sine", "mean": 1, "amplitude": 2, "period_s": 10},
    {"kind": "closed", "users": 0},
]


@pytest.mark.parametrize("given", WRONG, ids=str)
def test_an_impossible_load_is_rejected(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Load).validate_python(given)


def test_every_shape_is_tested() -> None:
    kinds = {one.model_fields["kind"].annotation.__args__[0] for one in arrivals.Open.__args__}  # type: ignore[union-attr]

    assert kinds == set(SHAPES)
