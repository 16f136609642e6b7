"""Several pages as one, read back with the library that Prometheus clients use."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import add_queued_requests
from gateway.multiprocess.worker.metrics_merge import MetricsPage, merge


class Worker:
    """A worker's registry, with what the real ones have."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests.", ["outcome"], registry=self.registry)
        self.took = Histogram("took_seconds", "How long.", buckets=(0.1, 1), registry=self.registry)
        self.active = Gauge("sluice_streams_active", "Streams.", registry=self.registry)
        self.running = Gauge("vllm:num_requests_running", "Running.", ["engine"], registry=self.registry)
        self.cache = Gauge("vllm:kv_cache_usage_perc", "Cache.", ["model_name", "engine"], registry=self.registry)

    def page(self, *, busy: bool = True, **stats_s: float) -> MetricsPage:
        text = generate_latest(self.registry).decode()
        return MetricsPage(text, {engine.removeprefix("e"): when_s for engine, when_s in stats_s.items()}, busy)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_page_of_one_worker_is_unchanged() -> None:
    one = Worker()
    one.requests.labels('o"k\n').inc(3)
    one.took.observe(0.5)

    assert samples(merge([one.page()])) == samples(one.page().text)


def test_counters_histograms_and_gauges_add_up() -> None:
    one, two = Worker(), Worker()
    one.requests.labels("ok").inc(3)
    two.requests.labels("ok").inc(4)
    two.requests.labels("error").inc()
    one.took.observe(0.05)
    two.took.observe(0.5)
    two.took.observe(50)
    one.active.set(2)
    two.active.set(5)
    found = samples(merge([one.page(), two.page()]))

    assert found[("requests_total", (("outcome", "ok"),))] == 7
    assert found[("requests_total", (("outcome", "error"),))] == 1
    assert [found[("took_seconds_bucket", (("le", le),))] for le in ("0.1", "1.0", "+Inf")] == [1, 2, 3]
    assert (found[("took_seconds_count", ())], found[("took_seconds_sum", ())]) == (3, 50.55)
    assert found[("sluice_streams_active", ())] == 7


def test_each_family_keeps_one_description() -> None:
    one, two = Worker(), Worker()
    merged = merge([one.page(), two.page()])

    assert merged.count("# TYPE sluice_streams_active gauge\n") == 1
    assert merged.count("# HELP sluice_streams_active Streams.\n") == 1


def test_of_an_engines_gauges_the_newest_counts_whichever_worker_has_it() -> None:
    """Its scheduler sends its statistics to one client at a time: a sum would count old ones again."""
    one, two = Worker(), Worker()
    for worker, first, second in ((one, 10, 1), (two, 30, 2)):
        worker.running.labels("0").set(first)
        worker.running.labels("1").set(second)
        worker.cache.labels("m", "0").set(first / 100)
    found = samples(merge([one.page(e0=7.0, e1=9.0), two.page(e0=8.0, e1=3.0)]))

    assert found[("vllm:num_requests_running", (("engine", "0"),))] == 30
    assert found[("vllm:num_requests_running", (("engine", "1"),))] == 1
    assert found[("vllm:kv_cache_usage_perc", (("engine", "0"), ("model_name", "m")))] == 0.3


def test_an_engine_without_statistics_yet_is_shown_once() -> None:
    one, two = Worker(), Worker()
    for worker in (one, two):
        worker.running.labels("0").set(0)

    assert samples(merge([one.page(), two.page()]))[("vllm:num_requests_running", (("engine", "0"),))] == 0


def test_nothing_runs_where_no_worker_has_a_request() -> None:
    """After an abort no further step sets the gauge, and autoscalers would see a running request for ever."""
    one, two = Worker(), Worker()
    one.running.labels("0").set(4)
    one.active.set(1)
    idle = samples(merge([one.page(busy=False, e0=1.0), two.page(busy=False)]))
    busy = samples(merge([one.page(busy=False, e0=1.0), two.page(busy=True)]))

    assert idle[("vllm:num_requests_running", (("engine", "0"),))] == 0
    assert idle[("sluice_streams_active", ())] == 1
    assert busy[("vllm:num_requests_running", (("engine", "0"),))] == 4


def test_values_that_all_workers_share_are_not_added_up() -> None:
    def page(started: float, restarts: int) -> MetricsPage:
        return MetricsPage(
            f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {started}\n"
            f"# TYPE requests_created gauge\nrequests_created {started}\n"
            '# TYPE sluice_build_info gauge\nsluice_build_info{version="1"} 1.0\n'
            "# TYPE process_max_fds gauge\nprocess_max_fds 1024.0\n"
            "# TYPE sluice_seats gauge\nsluice_seats 256.0\n"
            f"# TYPE sluice_engine_restarts_total counter\nsluice_engine_restarts_total {restarts}\n"
            "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 5e+08\n"
        )

    found = samples(merge([page(2.0, 1), page(1.0, 2)]))

    assert found[("process_start_time_seconds", ())] == found[("requests_created", ())] == 1
    assert found[("sluice_build_info", (("version", "1"),))] == 1
    assert found[("process_max_fds", ())] == 1024
    assert found[("sluice_seats", ())] == 256
    # One worker has noticed already, the other has not.
    assert found[("sluice_engine_restarts_total", ())] == 2
    assert found[("process_resident_memory_bytes", ())] == 1e9


@pytest.mark.parametrize("value", ["+Inf", "NaN", "-Inf"])
def test_infinities_and_nan_survive(value: str) -> None:
    text = f"# TYPE a gauge\na {value}\n"

    assert merge([MetricsPage(text)]) == text


def test_requests_that_wait_at_any_worker_are_in_vllms_gauge_of_all() -> None:
    """The engine's own count comes from the worker with the newest statistics; the queue is the sum over all."""
    text = (
        "# HELP sluice_requests_waiting Requests at the gate.\n# TYPE sluice_requests_waiting gauge\n"
        "sluice_requests_waiting {queue}\n"
        "# HELP vllm:num_requests_waiting Waiting.\n# TYPE vllm:num_requests_waiting gauge\n"
        'vllm:num_requests_waiting{{engine="0",model_name="m"}} {engine}\n'
    )
    newest = MetricsPage(text.format(queue=2.0, engine=1.0), stats_received_s={"0": 2.0}, has_requests=True)
    old = MetricsPage(text.format(queue=3.0, engine=9.0), stats_received_s={"0": 1.0}, has_requests=True)

    assert (
        'vllm:num_requests_waiting{engine="0",model_name="m"} 6.0\n'
        in add_queued_requests(merge([newest, old]).encode()).decode()
    )
