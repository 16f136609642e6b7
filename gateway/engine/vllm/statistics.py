"""vLLM's own statistics for less.

vLLM writes some twenty metrics after every step of its engine, each under a lock, and one per token. Most steps only
add a token to every stream: those are added up here and written together, twenty times a second at the most. What says
anything else (a first token, an end, a preemption, a cache hit, ...) is written at once, after what came before it.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WRITE_EVERY_S = 0.05

# What a step may say and still be a plain one; everything that is not named here must be absent, zero or empty.
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
_TOKENS = frozenset({"iteration_timestamp", "num_generation_tokens"})
# Their own statistics are objects, true even if they say nothing.
_NESTED = frozenset({"prefix_cache_stats", "prompt_token_stats"})
# One that only prints averages keeps no latencies; whatever else somebody has plugged in may want every step.
_KNOWN = frozenset({"PrometheusStatLogger", "LoggingStatLogger", "AggregatedLoggingStatLogger"})


@dataclass(slots=True)
class _Held:
    """What the plain steps of one engine have said since the last writing."""

    scheduler: Any = None
    iteration: Any = None
    sizes: list[float] = field(default_factory=list)


class Statistics:
    """Stands where AsyncLLM calls its logger manager's `record`. To be used in one event loop."""

    def __init__(self, manager: Any) -> None:
        """`manager`: vLLM's StatLoggerManager; None where its statistics are off."""
        self._record = None if manager is None else manager.record
        self._held: dict[int, _Held] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._latencies: Callable[[list[float]], None] | None = None
        prometheus = _prometheus(manager)
        if prometheus is None:
            return
        latencies = list(prometheus.histogram_inter_token_latency.values())
        if len(latencies) == 1:
            self._latencies = _bulk(latencies[0])
        sizes = {index: _bulk(one) for index, one in prometheus.histogram_iteration_tokens.items()}
        if all(sizes.values()):
            self._sizes: dict[int, Any] = sizes
            self._tokens = prometheus.counter_generation_tokens
            self._others = [one for one in manager.stat_loggers if one is not prometheus]
            manager.record = self.record

    def latencies(self, iteration: Any, values: list[float]) -> None:
        """Count inter-token latencies (seconds) of a step whose IterationStats is `iteration`."""
        if self._latencies is None:
            iteration.inter_token_latencies_iter.extend(values)
        else:
            self._latencies(values)

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int | None = None
    ) -> None:
        """As StatLoggerManager.record."""
        index = engine_idx or 0
        if (
            scheduler_stats is None
            or iteration_stats is None
            or (mm_cache_stats is not None and _says(mm_cache_stats, _TOKENS))
            or _says(scheduler_stats, _GAUGES)
            or _says(iteration_stats, _TOKENS)
        ):
            self._write(index)
            assert self._record is not None
            self._record(scheduler_stats, iteration_stats, mm_cache_stats=mm_cache_stats, engine_idx=engine_idx)
            return
        held = self._held.setdefault(index, _Held())
        held.scheduler = scheduler_stats
        held.sizes.append(iteration_stats.num_generation_tokens)
        if held.iteration is None:
            held.iteration = iteration_stats
        else:
            held.iteration.num_generation_tokens += iteration_stats.num_generation_tokens
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_EVERY_S, self._write_all)

    def _write_all(self) -> None:
        self._timer = None
        for index in list(self._held):
            self._write(index)

    def _write(self, index: int) -> None:
        held = self._held.pop(index, None)
        if held is None:
            return
        assert self._record is not None
        # The gauges, everywhere.
        self._record(held.scheduler, None, engine_idx=index)
        self._tokens[index].inc(held.iteration.num_generation_tokens)
        # Every step is one observation, so they cannot be added up.
        self._sizes[index](held.sizes)
        for logger in self._others:
            logger.record(None, held.iteration, engine_idx=index)


def _says(stats: Any, usual: frozenset[str]) -> bool:
    """Whether there is anything in these statistics but the usual."""
    for name, value in vars(stats).items():
        if name in usual:
            continue
        if name in _NESTED:
            if any(vars(value).values()):
                return True
        elif value:
            return True
    return False


def _prometheus(manager: Any) -> Any:
    """vLLM's Prometheus logger, if it is there once and every other one is known."""
    if manager is None:
        return None
    loggers = list(manager.stat_loggers)
    inner = [one for logger in loggers for one in vars(logger).get("per_engine_stat_loggers", {}).values()]
    outer = [logger for logger in loggers if "per_engine_stat_loggers" not in vars(logger)]
    found = [logger for logger in loggers if "histogram_inter_token_latency" in vars(logger)]
    if len(found) != 1 or any(type(one).__name__ not in _KNOWN for one in inner + outer):
        return None
    return found[0]


def _bulk(child: Any) -> Callable[[list[float]], None] | None:
    """What observes many values in a histogram of the library without a lock and a search for each; None if it is not
    made as we know it."""
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


__all__ = ["WRITE_EVERY_S", "Statistics"]
