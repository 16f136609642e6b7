from __future__ import annotations

import itertools

import pytest

from loadtest.measure.result import Server
from loadtest.report import figures
from loadtest.report.chart import Chart
from tests.unit.loadtest.fake_results import fake_result


def named(charts: list[Chart]) -> dict[str, Chart]:
    return {chart.title: chart for chart in charts}


def test_a_run_has_its_charts_and_none_is_empty() -> None:
    charts = figures.timeline_charts(fake_result(errors={"reset": 0.05}))

    assert [chart.title for chart in charts] == [
        "Requests", "In flight", "Output tokens", "Time to first token", "Between tokens (ITL)", "Whole requests (E2E)",
        "Errors",
    ]  # fmt: skip
    assert not any(chart.is_empty for chart in charts)


def test_a_closed_loop_has_no_due_rate() -> None:
    opened, closed = (named(figures.timeline_charts(fake_result(closed=each)))["Requests"] for each in (False, True))

    assert [line.name for line in opened.lines] == ["due", "sent", "successful"]
    assert [line.name for line in closed.lines] == ["sent", "successful"]


def test_a_run_without_errors_has_no_chart_of_them() -> None:
    assert "Errors" not in named(figures.timeline_charts(fake_result()))


def test_many_kinds_of_errors_become_a_few_and_none_is_lost() -> None:
    result = fake_result(errors={f"kind_{i}": 0.03 for i in range(12)})
    chart = named(figures.timeline_charts(result))["Errors"]
    drawn = sum(value or 0 for line in chart.lines for _, value in line.points)

    assert len(chart.lines) == 6
    assert chart.lines[-1].name == "7 other kinds"
    assert drawn == pytest.approx(sum(sum(each.errors.values()) for each in result.timeline))


def test_long_runs_are_merged_into_spans_without_loss() -> None:
    result = fake_result(seconds=3000, rate=1.0, gaps=1)
    chart = named(figures.timeline_charts(result))["Requests"]
    due = chart.lines[0].points
    per_point = 13

    assert len(due) <= 240
    assert chart.note == f"each point is {per_point} s"
    whole = [value for _, value in due[:-1]]
    assert sum(value or 0 for value in whole) * per_point == pytest.approx(
        sum(each.due for each in result.timeline[: len(whole) * per_point])
    )
    assert chart.x_labels[100] == "21:46"


def test_latencies_of_a_second_are_those_of_its_histogram() -> None:
    result = fake_result()
    chart = named(figures.timeline_charts(result))["Time to first token"]
    at = next(i for i, each in enumerate(result.timeline) if each.ttft.get("buckets"))
    p50, p99 = (line.points[at][1] for line in chart.lines)

    assert p50 is not None
    assert p99 is not None
    assert p99 == pytest.approx(int(result.timeline[at].ttft["max"]) / 1000, rel=0.01)
    assert p50 <= p99


def test_limits_near_the_values_are_drawn() -> None:
    charts = named(figures.percentile_charts(fake_result()))

    assert [rule.label for rule in charts["Between tokens (ITL)"].reference_lines] == ["p99 limit 40 ms"]
    assert charts["Between tokens (ITL)"].y.covers(40)
    assert charts["Whole requests (E2E)"].reference_lines == []


def test_a_percentile_curve_rises_to_the_largest() -> None:
    result = fake_result()
    curve = [value for _, value in named(figures.percentile_charts(result))["Time to first token"].lines[0].points]

    assert all(one is not None and other is not None and one <= other for one, other in itertools.pairwise(curve))
    assert curve[-1] == pytest.approx(result.summary.ttft_ms.max, rel=0.01)


def test_the_servers_series_are_drawn_in_readable_units() -> None:
    charts = named(figures.server_charts(fake_result().server, 68, ()))

    assert [line.name for line in charts["Requests in the server"].lines] == [
        "vLLM running",
        "vLLM waiting",
        "Sluice active",
    ]
    assert charts["KV cache in use"].y.title == "% of blocks"
    assert max(value or 0 for _, value in charts["Memory of the server"].lines[0].points) == pytest.approx(1208, abs=3)
    assert "Preemptions" not in charts


def test_rejections_are_drawn_by_reason_and_only_during_the_run() -> None:
    series = {f'sluice_rejections_total{{reason="{why}"}}': [[-5.0, 9.0], [1.0, 2.0]] for why in ("full", "slow")}
    chart = named(figures.server_charts(Server(scraped=True, series=series), 10, ()))["Rejections"]

    assert [(line.name, line.points) for line in chart.lines] == [("full", [(1.0, 2.0)]), ("slow", [(1.0, 2.0)])]


def test_warm_up_and_drain_are_shaded() -> None:
    assert [
        (band.since, band.until) for band in figures.unmeasured_bands(fake_result(seconds=10, warmup=5, drain=3))
    ] == [
        (0, 5),
        (15, 18),
    ]
