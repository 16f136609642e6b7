"""The numbers of a run as it goes on: by workload and tenant for the measured stage, and by second for all of it.

Every part can be merged with others of its kind and converted into plain values. Workers send the increase since their
last report; the sum equals the numbers that a single worker would have counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from loadtest.measure.histogram import Histogram
from loadtest.measure.record import Record
from loadtest.measure.result import INTEGRITY_ERRORS, ErrorKind

_EXAMPLES = 20
# Counting a thousand gaps takes about a millisecond, during which the loop reads nothing.
_YIELD_EVERY = 256
# A request that is due at the very end of the measured stage starts after it; one that starts later than this does so
# because the generator has fallen behind.
_GRACE_NS = 100_000_000

PlainValues = dict[str, Any]
_COUNTS = ("due_count", "sent_count", "dropped_count", "checked_streams", "verified_tokens")


@dataclass(frozen=True, slots=True)
class Window:
    """The start of the run and its measured stage, in `perf_counter_ns`."""

    began_ns: int
    measure_ns: int
    drain_ns: int

    @classmethod
    def from_stages(cls, began_ns: int, warmup_s: float, measure_s: float) -> Window:
        measure_ns = began_ns + int(warmup_s * 1e9)
        return cls(began_ns, measure_ns, measure_ns + int(measure_s * 1e9))

    def contains(self, at_ns: int) -> bool:
        """Whether this moment is in the measured stage."""
        return self.measure_ns <= at_ns < self.drain_ns

    def second_of(self, at_ns: int) -> int:
        """The second of the run, from 0."""
        return max(0, (at_ns - self.began_ns) // 1_000_000_000)


class _Mergeable:
    """Counts, counters and histograms, by name."""

    COUNTS: ClassVar[tuple[str, ...]]
    HISTOGRAMS: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls.COUNTS = tuple(name for name, kind in cls.__annotations__.items() if kind == "int")
        cls.HISTOGRAMS = tuple(name for name, kind in cls.__annotations__.items() if kind == "Histogram")

    def __init__(self) -> None:
        for name in self.COUNTS:
            setattr(self, name, 0)
        for name in self.HISTOGRAMS:
            setattr(self, name, Histogram())
        self.errors: Counter[str] = Counter()

    def merge(self, document: Mapping[str, Any]) -> None:
        """Add numbers as from `to_dict`."""
        for name in self.COUNTS:
            setattr(self, name, getattr(self, name) + document[name])
        for name in self.HISTOGRAMS:
            if name in document:
                getattr(self, name).merge(Histogram.from_dict(document[name]))
        self.errors.update(document["errors"])

    def to_dict(self) -> PlainValues:
        """As plain values; empty histograms are left out."""
        counts = {name: getattr(self, name) for name in self.COUNTS}
        histograms = {name: stats.to_dict() for name in self.HISTOGRAMS if (stats := getattr(self, name)).count}
        return {**counts, **histograms, "errors": dict(self.errors)}


class GroupStats(_Mergeable):
    """Numbers of the requests that were due in the measured stage."""

    requests: int
    ok: int
    cancelled: int
    good: int
    output_tokens: int
    input_tokens: int
    ttft: Histogram
    itl: Histogram
    tpot: Histogram
    e2e: Histogram
    ttft_sent: Histogram
    e2e_sent: Histogram
    stall: Histogram


class SecondStats(_Mergeable):
    """Numbers of one second, each in the second in which it happened."""

    due: int
    sent: int
    ended: int
    ok: int
    cancelled: int
    in_flight: int
    output_tokens: int
    ttft: Histogram
    itl: Histogram
    tpot: Histogram
    e2e: Histogram


class Aggregates:
    def __init__(self, per_request: Mapping[str, float] | None = None) -> None:
        """`per_request`: the SLO's limits of a good request, in milliseconds."""
        self._limits = dict(per_request or {})
        self._clear()

    def _clear(self) -> None:
        self.groups: dict[tuple[str, str], GroupStats] = {}
        self.seconds: dict[int, SecondStats] = {}
        self.lateness = Histogram()
        # Of the requests due in the measured stage: all, those that started in time to count as sent, those never
        # started.
        self.due_count = 0
        self.sent_count = 0
        self.dropped_count = 0
        self.checked_streams = 0
        self.verified_tokens = 0
        self.violations: Counter[str] = Counter()
        self.examples: list[str] = []

    # Recording.

    def on_due(self, window: Window, at_ns: int) -> None:
        """A request was due."""
        self.second(window.second_of(at_ns)).due += 1
        self.due_count += window.contains(at_ns)

    def on_dropped(self, window: Window, at_ns: int, workload: str, tenant: str) -> None:
        """A request was due and could not be sent, because too many were in flight."""
        kind = ErrorKind.DROPPED_ARRIVAL
        self.second(window.second_of(at_ns)).errors[kind] += 1
        if window.contains(at_ns):
            self.dropped_count += 1
            group = self.group(workload, tenant)
            group.requests += 1
            group.errors[kind] += 1

    def on_started(self, window: Window, record: Record) -> None:
        """The generator begins a request. The time from here on, connecting included, is the server's."""
        self.second(window.second_of(record.started_ns)).sent += 1
        if window.contains(record.intended_ns):
            self.lateness.add((record.started_ns - record.intended_ns) // 1000)
            self.sent_count += record.started_ns < window.drain_ns + _GRACE_NS

    def on_ended(self, window: Window, record: Record, yield_loop: Callable[[], object] = lambda: None) -> None:
        """A request has ended. `yield_loop` is called now and then while this takes long."""
        group = self.group(record.workload, record.tenant)
        counts = window.contains(record.intended_ns)
        self._count_end(window, record, group if counts else None)
        self._count_times(window, record, group if counts else None)
        self._count_tokens(window, record, group, counts, yield_loop)
        if counts:
            self._count_violations(record)

    def _count_end(self, window: Window, record: Record, group: GroupStats | None) -> None:
        for stats in (self.second(window.second_of(record.ended_ns)), group):
            if stats is None:
                continue
            if record.error is not None:
                stats.errors[record.error] += 1
            elif record.left_by_plan:
                stats.cancelled += 1
            else:
                stats.ok += 1
            if isinstance(stats, SecondStats):
                stats.ended += 1
            else:
                stats.requests += 1
                stats.input_tokens += record.prompt_tokens
                stats.good += self._is_good(record)

    def _count_times(self, window: Window, record: Record, group: GroupStats | None) -> None:
        first_ns = record.first_token_ns
        if first_ns and record.counts_ttft:
            self.second(window.second_of(first_ns)).ttft.add((first_ns - record.intended_ns) // 1000)
            if group is not None:
                group.ttft.add((first_ns - record.intended_ns) // 1000)
                group.ttft_sent.add((first_ns - record.sent_ns) // 1000)
        if not record.counts_duration:
            return
        second, tpot = self.second(window.second_of(record.done_ns)), record.tpot_us
        second.e2e.add((record.done_ns - record.intended_ns) // 1000)
        if tpot is not None:
            second.tpot.add(tpot)
        if group is not None:
            group.e2e.add((record.done_ns - record.intended_ns) // 1000)
            group.e2e_sent.add((record.done_ns - record.sent_ns) // 1000)
            if tpot is not None:
                group.tpot.add(tpot)

    def _count_tokens(
        self, window: Window, record: Record, group: GroupStats, counts: bool, yield_loop: Callable[[], object]
    ) -> None:
        times = record.content_ns
        if not record.stream:
            self.second(window.second_of(record.ended_ns)).output_tokens += record.output_tokens
            group.output_tokens += record.output_tokens if window.contains(record.ended_ns) else 0
            return
        for at_ns, tokens in zip(times, record.content_tokens, strict=True):
            self.second(window.second_of(at_ns)).output_tokens += tokens
            if window.contains(at_ns):
                group.output_tokens += tokens
        if not record.counts_gaps:
            return
        for number, (before_ns, at_ns) in enumerate(pairwise(times), 1):
            gap = (at_ns - before_ns) // 1000
            self.second(window.second_of(at_ns)).itl.add(gap)
            if counts:
                group.itl.add(gap)
            if number % _YIELD_EVERY == 0:
                yield_loop()
        if counts and (longest := record.max_gap_us) is not None:
            group.stall.add(longest)

    def _is_good(self, record: Record) -> bool:
        if not record.is_ok:
            return False
        first_ns, tpot = record.first_token_ns, record.tpot_us
        measured: dict[str, float | None] = {
            "ttft_ms": (first_ns - record.intended_ns) / 1e6 if first_ns and record.counts_ttft else None,
            "tpot_ms": tpot / 1000 if tpot is not None and record.counts_duration else None,
            "e2e_ms": (record.done_ns - record.intended_ns) / 1e6 if record.counts_duration else None,
        }
        return all((value := measured[name]) is None or value <= limit for name, limit in self._limits.items())

    def _count_violations(self, record: Record) -> None:
        self.checked_streams += record.stream and record.status == 200
        self.verified_tokens += record.verified_tokens
        if record.error in INTEGRITY_ERRORS:
            self.violations[record.error] += 1
            if len(self.examples) < _EXAMPLES:
                name = record.completion_id or record.request_id or f"arrival {record.number}"
                self.examples.append(f"{record.error}: {name} ({record.workload}): {record.detail}")

    # Access.

    def group(self, workload: str, tenant: str) -> GroupStats:
        key = (workload, tenant)
        if key not in self.groups:
            self.groups[key] = GroupStats()
        return self.groups[key]

    def second(self, number: int) -> SecondStats:
        if number not in self.seconds:
            self.seconds[number] = SecondStats()
        return self.seconds[number]

    def overall(self) -> GroupStats:
        """All groups together."""
        overall = GroupStats()
        for stats in self.groups.values():
            overall.merge(stats.to_dict())
        return overall

    def ordered_seconds(self) -> Iterator[tuple[int, SecondStats]]:
        """All seconds from the first to the last, empty ones included."""
        for number in range(max(self.seconds, default=-1) + 1):
            yield number, self.second(number)

    # Between processes.

    def take_delta(self) -> PlainValues:
        """The increase since the last call, as plain values."""
        document = {
            "groups": [[*key, stats.to_dict()] for key, stats in self.groups.items()],
            "seconds": [[number, stats.to_dict()] for number, stats in self.seconds.items()],
            "lateness": self.lateness.to_dict(),
            **{name: getattr(self, name) for name in _COUNTS},
            "violations": dict(self.violations),
            "examples": self.examples,
        }
        self._clear()
        return document

    def merge(self, document: Mapping[str, Any]) -> None:
        """Add numbers as from `take_delta`."""
        for workload, tenant, numbers in document["groups"]:
            self.group(workload, tenant).merge(numbers)
        for number, second in document["seconds"]:
            self.second(number).merge(second)
        self.lateness.merge(Histogram.from_dict(document["lateness"]))
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + document[name])
        self.violations.update(document["violations"])
        self.examples = [*self.examples, *document["examples"]][:_EXAMPLES]
