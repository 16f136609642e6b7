from __future__ import annotations

import pytest

from loadtest.analysis.compare import compare
from loadtest.analysis.comparison import Comparison, Row, Trend
from loadtest.measure.result import Outcome, Result
from tests.unit.loadtest.fake_results import fake_result, run


def trends(found: Comparison) -> dict[str, Trend]:
    return {row.name: row.trend for row in found.rows}


def row(found: Comparison, name: str) -> Row:
    return next(each for each in found.rows if each.name == name)


def test_a_slower_server_is_a_regression() -> None:
    found = compare(fake_result(1, seconds=240, gaps=2), fake_result(2, seconds=240, gaps=2, slow=1.5))

    assert found.has_regressed
    assert {trends(found)[name] for name in ("TTFT p50", "TTFT p90", "ITL p50", "TPOT p90", "E2E p50")} == {"regressed"}
    assert found.headline.startswith("Regressed: TTFT p50, ")
    assert row(found, "ITL p50").change == pytest.approx(1.5, rel=0.1)


def test_a_faster_server_is_no_regression() -> None:
    found = compare(fake_result(1, seconds=240, gaps=2, slow=1.5), fake_result(2, seconds=240, gaps=2))

    assert not found.has_regressed
    assert trends(found)["ITL p50"] == Trend.IMPROVED


def test_the_same_run_twice_is_the_same_within_a_wide_tolerance() -> None:
    one = fake_result(1, seconds=240, gaps=2)
    found = compare(one, one, tolerance=0.5)

    assert trends(found)["ITL p50"] == Trend.SAME
    assert row(found, "ITL p50").change == 1


def test_a_change_within_the_tolerance_is_no_regression() -> None:
    slower = compare(fake_result(1, seconds=240, gaps=2), fake_result(2, seconds=240, gaps=2, slow=1.5), tolerance=0.9)

    assert not slower.has_regressed


def test_fewer_tokens_are_worse_and_more_are_better() -> None:
    busy, calm = fake_result(1, seconds=120, gaps=1, rate=16.0), fake_result(2, seconds=120, gaps=1, rate=8.0)

    assert trends(compare(busy, calm))["output tokens"] == Trend.REGRESSED
    assert trends(compare(calm, busy))["output tokens"] == Trend.IMPROVED


def test_errors_are_subtracted() -> None:
    clean, broken = fake_result(1, seconds=120, gaps=1), fake_result(2, seconds=120, gaps=1, errors={"reset": 0.05})
    worse, better = compare(clean, broken), compare(broken, clean)

    assert trends(worse)["error rate"] == Trend.REGRESSED
    assert row(worse, "error rate").cells()[3].endswith(" pp")
    assert trends(better)["error rate"] == Trend.IMPROVED


def test_equal_error_rates_of_zero_are_the_same() -> None:
    assert (
        trends(compare(fake_result(1, seconds=60, gaps=1), fake_result(2, seconds=60, gaps=1)))["error rate"]
        == Trend.SAME
    )


def test_an_unclear_change_names_the_likely_side() -> None:
    found = compare(fake_result(1, seconds=240, gaps=2), fake_result(2, seconds=240, gaps=2, slow=1.5), tolerance=0.45)

    assert row(found, "ITL p50").cells()[5] == "unclear: worse, perhaps only slightly"


def test_too_few_values_for_a_quantile_are_reported() -> None:
    assert (
        row(compare(fake_result(1, seconds=40), fake_result(2, seconds=40)), "TTFT p99")
        .cells()[5]
        .endswith("368 are needed")
    )


@pytest.mark.parametrize("seconds", [1, 10])
def test_runs_too_short_to_compare_are_no_regression(seconds: int) -> None:
    found = compare(fake_result(1, seconds=seconds), fake_result(2, seconds=seconds, slow=9))

    assert set(trends(found).values()) == {"unknown"}
    assert not found.has_regressed
    assert found.headline == "Nothing could be compared"


def test_a_run_without_a_timeline_cannot_be_compared() -> None:
    one = fake_result(1, seconds=60, gaps=1)
    found = compare(one, one.model_copy(update={"timeline": []}))

    assert {each.cells()[5] for each in found.rows if each.unit != "ms"} == {"unknown: nothing to compare"}


def test_runs_without_a_success_are_compared_by_errors_alone() -> None:
    found = compare(
        fake_result(1, seconds=60, errors={"connect": 1.0}), fake_result(2, seconds=60, errors={"connect": 1.0})
    )

    assert trends(found)["error rate"] == Trend.SAME
    assert trends(found)["output tokens"] == Trend.UNKNOWN


def changed(seed: int, **changes: object) -> Result:
    return fake_result(1, seconds=40, gaps=1).model_copy(update={"run": run(seed=seed, **changes)})


def test_differences_of_configuration_are_warnings() -> None:
    a = changed(1)
    b = changed(2, scenario_yaml="other", machine="another", model="m", versions={"python": "3.12", "locust": "2.47.0"})
    b = b.model_copy(update={"verdict": b.verdict.model_copy(update={"outcome": Outcome.INVALID})})

    assert compare(a, a).warnings == []
    assert list(compare(a, b).warnings) == [
        "the generator of run b did not keep up, so its numbers prove nothing",
        "the scenarios differ, so more than the server may have changed",
        "the seeds differ: 1 and 2",
        "the machines differ: 2 x Xeon 2.5 GHz, Linux and another",
        "the models differ: sluice-demo and m",
        "the versions of python differ: 3.11.2 and 3.12",
        "the versions of sluice differ: 0.1.0 and none",
    ]


def test_integrity_errors_are_a_warning() -> None:
    a = changed(1)
    b = a.model_copy(update={"verdict": a.verdict.model_copy(update={"outcome": Outcome.INTEGRITY})})

    assert list(compare(b, a).warnings) == ["streams of run a were incomplete or incorrect"]


def test_events_of_a_single_second_have_no_interval() -> None:
    """Most resamples lack that second, so its variation is unknown."""
    whole = fake_result(1, seconds=120, gaps=20)
    bare = [each if each.t_s == 60 else each.model_copy(update={"itl": {}}) for each in whole.timeline]
    found = row(compare(whole, whole.model_copy(update={"timeline": bare})), "ITL p50")

    assert found.cells()[5] == "unknown: too few events in most blocks of seconds"


def test_terminal_markdown_and_page_have_the_same_numbers() -> None:
    hostile = "<script>|`"
    found = compare(changed(1), changed(1, machine=hostile))
    cells = row(found, "TTFT p50").cells()

    for cell in cells:
        assert cell in found.text()
    assert f"warning: the machines differ: 2 x Xeon 2.5 GHz, Linux and {hostile}" in found.text()
    assert f"| {cells[0]} | {cells[1]} | {cells[2]} |" in found.markdown()
    assert "<script>|" not in found.html()
    assert found.html().count('<svg class="strip') == sum(each.low is not None for each in found.rows)
    assert hostile not in found.markdown()
