"""vLLM's statistics, added up: whatever is recorded, its metrics end as if every step had been written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.engine.vllm.output.batched_stats import WRITE_EVERY_S, BatchedStats, is_plain
from tests.support.time import in_virtual_time, run


class PrometheusStatLogger:
    """As vLLM's, as far as plain steps go; `writes` counts the calls."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.histogram_inter_token_latency = {0: Histogram("itl", "", registry=registry)}
        self.histogram_iteration_tokens = {0: Histogram("sizes", "", buckets=(1, 8, 64), registry=registry)}
        self.counter_generation_tokens = {0: Counter("tokens", "", registry=registry)}
        self.running = Gauge("running", "", registry=registry)
        self.finished = Counter("finished", "", registry=registry)
        self.hits = Counter("hits", "", registry=registry)
        self.writes = 0

    def record(self, scheduler: Any, iteration: Any, mm_cache_stats: Any = None, engine_idx: int = 0) -> None:
        self.writes += 1
        if scheduler is not None:
            self.running.set(scheduler.num_running_reqs)
            self.hits.inc(scheduler.prefix_cache_stats.hits)
        if iteration is None:
            return
        self.counter_generation_tokens[0].inc(iteration.num_generation_tokens)
        self.histogram_iteration_tokens[0].observe(iteration.num_generation_tokens)
        self.finished.inc(len(iteration.finished_requests))
        for value in iteration.inter_token_latencies_iter:
            self.histogram_inter_token_latency[0].observe(value)

    def samples(self) -> dict[Any, float]:
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }


class LoggingStatLogger:
    def __init__(self) -> None:
        self.tokens = 0

    def record(self, scheduler: Any, iteration: Any, mm_cache_stats: Any = None, engine_idx: int = 0) -> None:
        if iteration is not None:
            self.tokens += iteration.num_generation_tokens


class Manager:
    """vLLM's StatLoggerManager."""

    def __init__(self, *others: Any) -> None:
        self.prometheus = PrometheusStatLogger()
        self.stat_loggers = [*others, self.prometheus]

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int | None = None
    ) -> None:
        for logger in self.stat_loggers:
            logger.record(scheduler_stats, iteration_stats, mm_cache_stats=mm_cache_stats, engine_idx=engine_idx or 0)


def scheduler(running: int, hits: int = 0, **more: Any) -> Any:
    prefix = SimpleNamespace(reset=False, requests=0, hits=hits)
    return SimpleNamespace(num_running_reqs=running, kv_cache_usage=0.5, prefix_cache_stats=prefix, spec=None, **more)


def iteration(tokens: int, finished: int = 0, gaps: tuple[float, ...] = ()) -> Any:
    return SimpleNamespace(
        iteration_timestamp=1.0,
        num_generation_tokens=tokens,
        prompt_token_stats=SimpleNamespace(total=0),
        finished_requests=["one"] * finished,
        inter_token_latencies_iter=list(gaps),
    )


def blank() -> Any:
    return iteration(0)


STEPS = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 9), st.sampled_from([0, 0, 0, 1]), st.sampled_from([0, 0, 0, 3])),
    max_size=30,
)


@given(STEPS)
def test_every_metric_ends_as_if_each_step_had_been_written(steps: list[tuple[int, int, int, int]]) -> None:
    plain_manager, logging = Manager(LoggingStatLogger()), LoggingStatLogger()
    held = Manager(logging)

    async def record() -> None:
        statistics = BatchedStats(held, blank)
        for tokens, running, finished, hits in steps:
            gaps = [0.01] * tokens
            stats = scheduler(running, hits)
            plain_manager.record(stats, iteration(tokens, finished, tuple(gaps)))
            statistics.observe_latencies(0, gaps)
            if tokens and not finished and is_plain(stats):
                statistics.add_step(0, stats, tokens)
            else:
                held.record(stats, iteration(tokens, finished))
        await asyncio.sleep(2 * WRITE_EVERY_S)

    run(record())

    assert held.prometheus.samples() == pytest.approx(plain_manager.prometheus.samples())
    assert logging.tokens == sum(tokens for tokens, *_ in steps)


@in_virtual_time
async def test_plain_steps_are_written_together_and_the_gauges_are_the_newest() -> None:
    manager = Manager()
    statistics = BatchedStats(manager, blank)
    for number in range(100):
        statistics.add_step(0, scheduler(number), 8)
        await asyncio.sleep(WRITE_EVERY_S / 10)

    assert manager.prometheus.writes <= 10

    await asyncio.sleep(WRITE_EVERY_S)
    found = manager.prometheus.samples()

    assert (found["tokens_total",], found["sizes_count",], found["running",]) == (800, 100, 99)


@in_virtual_time
async def test_a_client_that_gets_no_gauges_writes_none() -> None:
    manager = Manager()
    statistics = BatchedStats(manager, blank)
    manager.record(scheduler(7), None)
    statistics.add_step(0, None, 8)
    await asyncio.sleep(2 * WRITE_EVERY_S)
    found = manager.prometheus.samples()

    assert (found["tokens_total",], found["sizes_count",], found["running",]) == (8, 1, 7)


@in_virtual_time
async def test_a_recorded_step_is_written_at_once_behind_those_before() -> None:
    manager = Manager()
    statistics = BatchedStats(manager, blank)
    statistics.add_step(0, scheduler(7), 5)

    assert manager.prometheus.writes == 0

    manager.record(scheduler(3), iteration(1, finished=1))
    found = manager.prometheus.samples()

    assert (found["running",], found["tokens_total",]) == (3, 6)


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        (scheduler(3), True),
        (None, True),
        (scheduler(3, hits=2), False),
        (scheduler(3, invented=[1]), False),
        (scheduler(3, invented=[]), True),
    ],
)
def test_a_step_is_plain_if_its_scheduler_stats_are_the_usual_gauges(stats: Any, expected: bool) -> None:
    assert is_plain(stats) is expected


class Custom(LoggingStatLogger):
    pass


@pytest.mark.parametrize("make", [lambda: Manager(Custom()), lambda: Manager(PrometheusStatLogger())])
@in_virtual_time
async def test_with_foreign_loggers_it_leaves_everything_to_vllm(make: Callable[[], Manager]) -> None:
    manager = make()

    assert not BatchedStats(manager, blank).can_batch

    manager.record(scheduler(1), iteration(1))

    assert manager.prometheus.writes == 1


def test_without_vllms_statistics_there_is_nothing_to_count() -> None:
    statistics = BatchedStats(None, blank)
    statistics.observe_latencies(0, [0.5])
    statistics.add_step(0, scheduler(1), 1)

    assert statistics.can_batch
