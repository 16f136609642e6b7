"""vLLM's own statistics, written less often.

vLLM writes some twenty metrics after every step of its engine, each under a lock, and one per token. Most steps only
add a token to every stream: those are added up here and written together, at most twenty times a second. Any other step
(with a first token, an end, a preemption, a cache hit, ...) is written by vLLM at once, after those before it.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WRITE_EVERY_S = 0.05

# The scheduler statistics of a plain step; all others must be absent, zero or empty.
_GAUGES = frozenset(
    {
        "num_running_reqs",
        "num_waiting_reqs",
        "num_skipped_waiting_reqs",
        "num_kv_fetch_reqs_by_stage",
        "kv_cache_usage",
        "step_counter",
        "current_wave",
    }
)
# An object, which is true even if it is empty.
_NESTED = "prefix_cache_stats"
# Loggers that need no single step: one that prints averages keeps no latencies. Loggers of a user may need every step.
_KNOWN = frozenset({"PrometheusStatLogger", "LoggingStatLogger", "AggregatedLoggingStatLogger"})


@dataclass(slots=True)
class _Pending:
    """The plain steps of one engine since the last writing: the newest gauges, and the tokens of each step."""

    scheduler: Any = None
    sizes: list[float] = field(default_factory=list)


class BatchedStats:
    """Replaces the `record` of AsyncLLM's logger manager, because that costs more than a token. To be used in one event
    loop."""

    def __init__(self, manager: Any, blank: Callable[[], Any]) -> None:
        """`manager`: vLLM's StatLoggerManager; None where its statistics are off. `blank` makes an IterationStats."""
        self.can_batch = manager is None
        """Whether steps may be added up. False if a logger is plugged in that may need each of them."""
        self._manager = manager
        self._blank = blank
        self._pending: dict[int, _Pending] = {}
        self._timer: asyncio.TimerHandle | None = None
        prometheus = _prometheus_logger(manager)
        if prometheus is None:
            return
        latencies = [_bulk_observer(one) for one in prometheus.histogram_inter_token_latency.values()]
        sizes = {index: _bulk_observer(one) for index, one in prometheus.histogram_iteration_tokens.items()}
        if all(latencies) and all(sizes.values()):
            self.can_batch = True
            self._latencies: dict[int, Any] = dict(
                zip(prometheus.histogram_inter_token_latency, latencies, strict=True)
            )
            self._sizes: dict[int, Any] = sizes
            self._tokens = prometheus.counter_generation_tokens
            self._others = [one for one in manager.stat_loggers if one is not prometheus]
            self._record = manager.record
            manager.record = self.record

    def observe_latencies(self, index: int, values: list[float]) -> None:
        """Count inter-token latencies, in seconds, of engine number `index`."""
        if values and self._manager is not None:
            self._latencies[index](values)

    def add_step(self, index: int, scheduler_stats: Any, tokens: int) -> None:
        """Count a plain step of engine number `index`. An engine with several clients sends its gauges to one of them
        at a time; the others get None."""
        if self._manager is None:
            return
        pending = self._pending.setdefault(index, _Pending())
        if scheduler_stats is not None:
            pending.scheduler = scheduler_stats
        if tokens:
            pending.sizes.append(tokens)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_EVERY_S, self._write_all)

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int | None = None
    ) -> None:
        """As StatLoggerManager.record."""
        self._write(engine_idx or 0)
        self._record(scheduler_stats, iteration_stats, mm_cache_stats=mm_cache_stats, engine_idx=engine_idx)

    def _write_all(self) -> None:
        self._timer = None
        for index in list(self._pending):
            self._write(index)

    def _write(self, index: int) -> None:
        pending = self._pending.pop(index, None)
        if pending is None:
            return
        if pending.scheduler is not None:
            # The gauges, of all loggers.
            self._record(pending.scheduler, None, engine_idx=index)
        if pending.sizes:
            total = self._blank()
            total.num_generation_tokens = int(sum(pending.sizes))
            self._tokens[index].inc(total.num_generation_tokens)
            # Every step is one observation, so they cannot be added up.
            self._sizes[index](pending.sizes)
            for logger in self._others:
                logger.record(None, total, engine_idx=index)


def is_plain(scheduler_stats: Any) -> bool:
    """Whether a step's scheduler statistics are the usual gauges only."""
    if scheduler_stats is None:
        return True
    for name, value in vars(scheduler_stats).items():
        if name in _GAUGES or not value:
            continue
        if name != _NESTED or any(vars(value).values()):
            return False
    return True


def _prometheus_logger(manager: Any) -> Any:
    """vLLM's Prometheus logger, if there is one and every other logger needs no single step."""
    if manager is None:
        return None
    loggers = list(manager.stat_loggers)
    inner = [one for logger in loggers for one in vars(logger).get("per_engine_stat_loggers", {}).values()]
    outer = [logger for logger in loggers if "per_engine_stat_loggers" not in vars(logger)]
    found = [logger for logger in loggers if "histogram_inter_token_latency" in vars(logger)]
    if len(found) != 1 or any(type(one).__name__ not in _KNOWN for one in inner + outer):
        return None
    return found[0]


def _bulk_observer(child: Any) -> Callable[[list[float]], None] | None:
    """A function that observes many values in a histogram of prometheus_client, without a lock and a search for each.
    None if the histogram is not built as expected."""
    if not all(hasattr(child, name) for name in ("_upper_bounds", "_buckets", "_sum")):
        return None
    bounds, buckets, total = list(child._upper_bounds), child._buckets, child._sum

    def observe(values: list[float]) -> None:
        counts: dict[int, int] = {}
        for value in values:
            at = bisect_left(bounds, value)
            counts[at] = counts.get(at, 0) + 1
        for at, count in counts.items():
            buckets[at].inc(count)
        total.inc(sum(values))

    return observe
