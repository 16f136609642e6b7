"""Four hundred runs of one server compared in pairs: how often the comparison errs."""

from __future__ import annotations

import pytest

from loadtest.analysis.compare import compare
from loadtest.analysis.comparison import Comparison
from tests.unit.loadtest.analysis.test_compare import row
from tests.unit.loadtest.fake_results import fake_result

PAIRS = 200


@pytest.fixture(scope="module")
def alike() -> list[Comparison]:
    """A server against itself, with other requests each time, often enough to count the intervals."""
    runs = [fake_result(seed, seconds=40, gaps=2, errors={"reset": 0.02}) for seed in range(2 * PAIRS)]
    return [compare(a, b) for a, b in zip(runs[::2], runs[1::2], strict=True)]


def test_a_server_is_rarely_found_worse_than_itself(alike: list[Comparison]) -> None:
    """Each comparison has fourteen numbers, and one of twenty comparisons may be wrong in any of them (ten of these 200
    are). The limit allows two standard errors of that many comparisons."""
    assert sum(found.has_regressed for found in alike) <= PAIRS * 0.08


@pytest.mark.parametrize(
    "name", ["TTFT p50", "TTFT p90", "ITL p50", "ITL p99", "TPOT p50", "E2E p90", "output tokens", "error rate"]
)
def test_intervals_cover_the_truth_about_as_often_as_promised(alike: list[Comparison], name: str) -> None:
    """The truth is a ratio of 1 and a difference of 0. Forty seconds in blocks of seven are few: 95 % is the aim, and
    90 % is the requirement for such short runs."""
    held = 0
    for found in alike:
        each = row(found, name)
        assert each.low is not None
        assert each.high is not None
        held += each.low <= (0 if each.is_difference else 1) <= each.high

    assert held / PAIRS >= 0.90
