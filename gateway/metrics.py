"""All metrics of Sluice, with their names and labels. Packages report events; only this file uses prometheus_client.

vLLM registers its own `vllm:*` metrics in the same default registry, so one scrape shows both.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway.domain import Cause

# A quantile above the last bound is reported as that bound. So each list reaches past the longest deadline of a request
# (the default of `streams.max_timeout_s` is an hour, its maximum a day), in growing steps, because exact values matter
# little beyond a few minutes.
_TAIL_S = (120, 300, 600, 1200, 2400, 4800, 14_400, 43_200, 90_000)
# From a warm prefix on a small model to a long prompt behind a queue.
_TTFT_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 15, 30, 60, *_TAIL_S)
_ITL_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5),
    *(5, 10, 30, 60),
    *_TAIL_S,
)
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, *_TAIL_S)
_WAIT_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, *_TAIL_S)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 10, 30, 60, *_TAIL_S)
_OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 15, 60, *_TAIL_S)

# There may be many keys over time, and a series is never removed.
_TENANTS = 200
_OTHERS = "(others)"

# The longest batch of uncounted values, some 30 KiB.
_COUNT_AT = 4096


# vLLM's gauges of waiting requests, by engine; the second one splits the first by reason.
_WAITING = re.compile(
    rb"^(vllm:num_requests_waiting|vllm:num_requests_waiting_by_reason)(\{[^\n]*\}) (\S+)$", re.MULTILINE
)
_WAITING_HELP = re.compile(rb"^(# HELP vllm:num_requests_waiting [^\n]*)$", re.MULTILINE)
_QUEUE = re.compile(rb"^sluice_requests_waiting (\S+)$", re.MULTILINE)


def add_queued_requests(page: bytes) -> bytes:
    """The exposition `page`, with the requests in Sluice's queue added to vLLM's gauges of waiting requests, an equal
    share to each engine. Endpoint pickers and autoscalers read vLLM's gauge, but requests wait in Sluice instead."""
    found = _QUEUE.search(page)
    queued = 0 if found is None else int(float(found[1]))
    lines = [line for line in _WAITING.finditer(page) if _is_for_capacity(line)]
    engines = sum(line[1] == b"vllm:num_requests_waiting" for line in lines)
    counts: Count[bytes] = Count()

    def more(line: re.Match[bytes]) -> bytes:
        if not _is_for_capacity(line):
            return line[0]
        name = line[1]
        share = queued // engines + (counts[name] < queued % engines)
        counts[name] += 1
        return b"%s%s %s" % (name, line[2], repr(float(line[3]) + share).encode())

    page = _WAITING_HELP.sub(rb"\1 Includes the requests in Sluice's queue.", page)
    return _WAITING.sub(more, page) if queued and engines else page


def _is_for_capacity(line: re.Match[bytes]) -> bool:
    """Whether the sample counts requests that wait for capacity; other reasons concern only the engine."""
    return not line[1].endswith(b"_by_reason") or b'reason="capacity"' in line[2]


class BatchedHistogram(Collector):
    """A histogram for events of each token. A value is appended to a batch, which is counted at a scrape or when it is
    full. The library's histogram takes a lock and searches the bounds for each value."""

    def __init__(self, name: str, text: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._bounds = list(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        self._noted: list[float] = []
        registry.register(self)

    def note(self, value: float) -> None:
        """Observe one value."""
        self._noted.append(value)
        if len(self._noted) >= _COUNT_AT:
            self._count()

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Called by the library at a scrape."""
        self._count()
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        yield HistogramMetricFamily(
            self._name,
            self._text,
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )

    def _count(self) -> None:
        noted, self._noted = self._noted, []
        for value in noted:
            self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += sum(noted)


class TenantMetrics(Collector):
    """Metrics by the name of the API key. The keys after the first 200 are counted together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight: Callable[[], Mapping[str, int]] = dict
        """Unfinished requests by name."""
        self._names: set[str] = set()
        self._ended = Counter(
            "sluice_tenant_requests_total",
            "Generating requests by the name of their API key and how they ended.",
            ["tenant", "cause"],
            registry=registry,
        )
        self._tokens = Counter(
            "sluice_tenant_tokens_total",
            "Tokens read and written, by the name of the API key; counted when a request ends.",
            ["tenant", "kind"],
            registry=registry,
        )
        registry.register(self)

    def used(self, tenant: str, cause: Cause, prompt_tokens: int, completion_tokens: int) -> None:
        """Count a finished request."""
        name = self._shown(tenant)
        self._ended.labels(name, cause).inc()
        self._tokens.labels(name, "prompt").inc(prompt_tokens)
        self._tokens.labels(name, "completion").inc(completion_tokens)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the library at a scrape."""
        family = GaugeMetricFamily(
            "sluice_tenant_requests_in_flight",
            "Requests that have not ended, waiting ones included, by the name of their API key.",
            labels=["tenant"],
        )
        # Includes names without requests now: a series that disappears is a gap and not a zero.
        shown: Count[str] = Count(dict.fromkeys(self._names, 0))
        for tenant, requests in self.in_flight().items():
            shown[self._shown(tenant)] += requests
        for name, requests in shown.items():
            family.add_metric([name], requests)
        yield family

    def _shown(self, tenant: str) -> str:
        if tenant not in self._names:
            if len(self._names) >= _TENANTS:
                return _OTHERS
            self._names.add(tenant)
        return tenant


class Metrics:
    """Counts the events of `gateway.domain.Instrumentation`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, version: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self.endings: Count[Cause] = Count()
        """Number of finished generating requests by cause."""
        self._tenants = TenantMetrics(registry)
        self.used = self._tenants.used
        self._make_histograms()
        self._make_counters()
        self._start_at_zero()
        Gauge("sluice_build_info", "Always 1.", ["version"], registry=registry).labels(version).set(1)

    def _make_histograms(self) -> None:
        self.first_token = self._histogram(
            "time_to_first_token_seconds",
            "From the first byte of a streamed request to the write of its first token, queueing included.",
            _TTFT_S,
        ).observe
        self.token_gap = BatchedHistogram(
            "sluice_inter_token_latency_seconds", "Between two engine outputs of one request.", _ITL_S, self._registry
        ).note
        self.waited = self._histogram(
            "queue_wait_seconds", "Time in the queue, zero for requests admitted at once.", _WAIT_S
        ).observe
        self.overhead = self._histogram(
            "overhead_seconds", "Time in the gateway: from arrival to engine submit, without the queue.", _OVERHEAD_S
        ).observe
        self.loop_lag = self._histogram(
            "loop_lag_seconds", "By how much a timer of the event loop was late; ten a second.", _LAG_S
        ).observe
        self._duration = self._histogram(
            "request_duration_seconds",
            "From the first byte of a request to the last of its response.",
            _REQUEST_S,
            "endpoint",
        )

    def _make_counters(self) -> None:
        self._requests = self._counter("requests", "Finished HTTP requests.", "endpoint", "outcome")
        self._ended = self._counter("ended", "Generating requests by how they ended.", "cause")
        self._wasted = self._counter("wasted_tokens", "Tokens of requests that did not end well.", "cause")
        self._rejections = self._counter("rejections", "Requests refused by admission.", "reason")
        self.merged = self._counter(
            "merged_deltas", "Deltas merged into a later one because their reader was slow."
        ).inc
        self._resumes = self._counter("stream_resumes", "Attempts to resume a stream, by result.", "result")
        self._recovered = self._counter(
            "streams_recovered", "Requests in flight when their engine died, by result.", "result"
        )
        self.restarted = self._counter("engine_restarts", "Engines started to replace a dead one.").inc

    def _start_at_zero(self) -> None:
        # The dashboards divide by these, so a cause that has not occurred must be a zero and not a gap.
        for cause in Cause:
            self._ended.labels(cause)
            self._wasted.labels(cause)
        for result in ("continued", "failed", "expelled"):
            self._recovered.labels(result)
        # Otherwise the first burst would be the initial value of its series, and no rate would ever show it.
        for reason in ("queue_full", "queue_timeout", "resumable_full", "bodies"):
            self._rejections.labels(reason)
        for result in ("ok", "read_out"):
            self._resumes.labels(result)

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read at each scrape."""
        Gauge(f"sluice_{name}", text, registry=self._registry).set_function(value)

    def set_tenant_requests(self, in_flight: Callable[[], Mapping[str, int]]) -> None:
        """Set the source of the unfinished requests by key name, read at each scrape."""
        self._tenants.in_flight = in_flight

    def render(self) -> bytes:
        """The exposition of Sluice's and vLLM's metrics."""
        return generate_latest(self._registry)

    def rejected(self, reason: str) -> None:
        self._rejections.labels(reason).inc()

    def ended(self, cause: Cause, wasted_tokens: int) -> None:
        self.endings[cause] += 1
        self._ended.labels(cause).inc()
        self._wasted.labels(cause).inc(wasted_tokens)

    def resumed(self, result: str) -> None:
        self._resumes.labels(result).inc()

    def recovered(self, result: str, streams: int) -> None:
        self._recovered.labels(result).inc(streams)

    def served(self, endpoint: str, outcome: str, seconds: float) -> None:
        self._requests.labels(endpoint, outcome).inc()
        self._duration.labels(endpoint).observe(seconds)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"sluice_{name}", text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sluice_{name}_total", text, labels, registry=self._registry)
