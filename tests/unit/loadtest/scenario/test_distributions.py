from __future__ import annotations

import statistics
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter

from loadtest.scenario.distributions import Distribution


@pytest.mark.parametrize(
    ("given", "mean", "spread"),
    [
        (7, 7, 0),
        ({"kind": "uniform", "low": 2, "high": 6}, 4, 4 / 12**0.5),
        ({"kind": "lognormal", "mean": 50, "cv": 0.4}, 50, 20),
        ({"kind": "exponential", "mean": 9}, 9, 9),
        ({"kind": "choice", "values": [1, 5], "weights": [3, 1]}, 2, 3**0.5),
    ],
)
def test_a_distribution_has_its_mean_and_standard_deviation(given: Any, mean: float, spread: float) -> None:
    distribution, rng = TypeAdapter[Any](Distribution).validate_python(given), Random(1)
    values = [distribution.sample(rng) for _ in range(20_000)]

    assert statistics.mean(values) == pytest.approx(mean, rel=0.03)
    assert statistics.pstdev(values) == pytest.approx(spread, rel=0.05)
