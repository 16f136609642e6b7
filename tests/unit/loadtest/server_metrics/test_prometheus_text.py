from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics
from loadtest.server_metrics.prometheus_text import MetricsHistory, parse_samples, sum_gauges

RUNNING = 'vllm:num_requests_running{engine="0"}'
TOKENS = 'vllm:generation_tokens_total{engine="0"}'


def test_samples_equal_those_of_prometheus_clients_parser() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("0", registry)
    metrics.rejected("queue is full")
    metrics.rejected('a "reason" with } and , in it')
    metrics.overhead(0.25)
    metrics.first_token(1.5)
    Gauge("vllm:num_requests_running", "", ["engine", "model"], registry=registry).labels("0", "a b{c}").set(3)
    Counter("vllm:generation_tokens", "", ["engine"], registry=registry).labels("0").inc(12)
    text = metrics.render().decode()
    by_library = {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    samples = parse_samples(text)

    assert samples['vllm:num_requests_running{engine="0",model="a b{c}"}'] == 3
    assert samples['sluice_rejections_total{reason="queue is full"}'] == 1
    assert samples["sluice_overhead_seconds_sum"] == by_library["sluice_overhead_seconds_sum", ()] == 0.25
    assert samples["sluice_time_to_first_token_seconds_count"] == 1
    assert not any("bucket" in name or "created" in name for name in samples)
    assert sorted(samples.values()) == sorted(
        value for (name, _), value in by_library.items() if name in {each.partition("{")[0] for each in samples}
    )


def test_a_timestamp_behind_a_value_is_ignored() -> None:
    assert parse_samples("sluice_streams_active 3 1700000000000\n") == {"sluice_streams_active": 3}


@pytest.mark.parametrize("text", ["sluice_streams_active\n", "sluice_streams_active three\n"])
def test_an_invalid_line_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"three|without a value"):
        parse_samples(text)


def test_gauges_are_summed_and_the_largest_cache_usage_counts() -> None:
    one = {RUNNING: 3.0, 'vllm:kv_cache_usage_perc{engine="0"}': 0.2, 'vllm:kv_cache_usage_perc{engine="1"}': 0.6}
    two = {RUNNING: 4.0, 'vllm:kv_cache_usage_perc{engine="0"}': 0.5, TOKENS: 9.0}

    assert sum_gauges([one, two]) == {"vllm:num_requests_running": 7, "vllm:kv_cache_usage_perc": 0.6}


def history_of(*readings: tuple[float, list[dict[str, float] | None]]) -> MetricsHistory:
    history = MetricsHistory()
    for at_s, pages in readings:
        history.add_reading(at_s, pages)
    return history


def test_counts_from_before_the_run_do_not_count() -> None:
    history = history_of((0, [{TOKENS: 1000.0}]), (1, [{TOKENS: 1040.0}]), (3, [{TOKENS: 1100.0}]))

    assert history.increase("vllm:generation_tokens_total") == 100
    assert history.series["vllm:generation_tokens_total"] == [(1, 40), (3, 30)]


def test_labels_that_appear_during_the_run_count_from_zero() -> None:
    full, slow = 'sluice_rejections_total{reason="full"}', 'sluice_rejections_total{reason="slow"}'
    history = history_of((0, [{}]), (1, [{full: 5.0}]), (2, [{full: 7.0, slow: 1.0}]))

    assert history.series == {full: [(1, 5), (2, 2)], slow: [(2, 1)]}
    assert history.restarts == 0


def test_a_counter_that_falls_was_reset() -> None:
    history = history_of((0, [{TOKENS: 100.0}]), (1, [{TOKENS: 150.0}]), (2, [{TOKENS: 30.0}]), (3, [{TOKENS: 50.0}]))

    assert history.increase("vllm:generation_tokens_total") == 100
    assert history.restarts == 1


def test_the_restart_of_one_of_two_servers_is_found() -> None:
    history = history_of((0, [{TOKENS: 100.0}, {TOKENS: 0.0}]), (1, [{TOKENS: 10.0}, {TOKENS: 500.0}]))

    assert history.increase("vllm:generation_tokens_total") == 510
    assert history.restarts == 1


def test_a_restart_is_found_by_the_start_time() -> None:
    history = history_of(
        (0, [{TOKENS: 10.0, "process_start_time_seconds": 1.0}]),
        (5, [{TOKENS: 60.0, "process_start_time_seconds": 9.0}]),
    )

    assert history.increase("vllm:generation_tokens_total") == 60
    assert history.restarts == 1


def test_a_missed_reading_leaves_a_gap_and_no_peak() -> None:
    page = {TOKENS: 0.0, RUNNING: 2.0}
    history = history_of((0, [page]), (1, [None]), (2, [{TOKENS: 100.0, RUNNING: 4.0}]))

    assert history.series["vllm:generation_tokens_total"] == [(2, 50)]
    assert history.series["vllm:num_requests_running"] == [(0, 2), (2, 4)]
    assert (history.first_gauges, history.last_gauges) == (
        {"vllm:num_requests_running": 2},
        {"vllm:num_requests_running": 4},
    )


def test_a_partial_sum_is_left_out() -> None:
    history = history_of((0, [{RUNNING: 2.0}, {RUNNING: 3.0}]), (1, [{RUNNING: 2.0}, None]))

    assert history.series["vllm:num_requests_running"] == [(0, 5)]


def test_a_mean_between_two_times_uses_the_readings_around_them() -> None:
    def page(count: float, total: float) -> list[dict[str, float] | None]:
        return [{"sluice_overhead_seconds_count": count, "sluice_overhead_seconds_sum": total}]

    history = history_of((0, page(0, 0)), (1, page(10, 10)), (2, page(20, 11)), (3, page(30, 31)))

    assert history.mean("sluice_overhead_seconds") == pytest.approx(31 / 30)
    assert history.mean("sluice_overhead_seconds", 1.2, 1.8) == pytest.approx(0.1)
    assert history.mean("sluice_overhead_seconds", 3, 9) is None
    assert history.mean("vllm:time_to_first_token_seconds") is None


def test_the_loop_lag_is_the_mean_since_the_last_reading() -> None:
    def page(count: float, total: float) -> list[dict[str, float] | None]:
        return [{"sluice_loop_lag_seconds_count": count, "sluice_loop_lag_seconds_sum": total}]

    history = history_of((0, page(100, 9)), (1, page(110, 9.1)), (2, page(110, 9.1)), (3, page(120, 9.3)))

    assert [(at, round(value, 6)) for at, value in history.series["sluice_loop_lag_seconds"]] == [(1, 0.01), (3, 0.02)]
