"""The numbers of a run, as they grow: by workload and tenant for the measured stage, and by second for all of it.

Every part can be merged with its like and packed into plain values, so that workers send what has been added since
their last report, and the sum is what one worker alone would have counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from loadtest.measure.histogram import Histogram
from loadtest.measure.record import Record
from loadtest.measure.result import UNTRUE, ErrorKind

__all__ = ["Numbers", "Second", "Tally", "Window"]

_EXAMPLES = 20
# Counting a thousand gaps takes about a millisecond, in which nothing else could be read.
_BREATHE_EVERY = 256
# What is due at the very end of the measured stage is begun after it; a generator that falls behind is later than this.
_GRACE_NS = 100_000_000

Packed = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Window:
    """When the run began and which part of it is measured, in `perf_counter_ns`."""

    began_ns: int
    measure_ns: int
    drain_ns: int

    @classmethod
    def of(cls, began_ns: int, warmup_s: float, measure_s: float) -> Window:
        """The window of a run that began at `began_ns`."""
        measure_ns = began_ns + int(warmup_s * 1e9)
        return cls(began_ns, measure_ns, measure_ns + int(measure_s * 1e9))

    def measures(self, at_ns: int) -> bool:
        """Whether something at this moment counts."""
        return self.measure_ns <= at_ns < self.drain_ns

    def second(self, at_ns: int) -> int:
        """The second of the run."""
        return max(0, (at_ns - self.began_ns) // 1_000_000_000)


class _Part:
    """Counts, counters and histograms, by name."""

    COUNTS: tuple[str, ...] = ()
    HISTOGRAMS: tuple[str, ...] = ()

    def __init__(self) -> None:
        for name in self.COUNTS:
            setattr(self, name, 0)
        for name in self.HISTOGRAMS:
            setattr(self, name, Histogram())
        self.errors: Counter[str] = Counter()

    def merge(self, packed: Mapping[str, Any]) -> None:
        """Add what another one packed."""
        for name in self.COUNTS:
            setattr(self, name, getattr(self, name) + packed[name])
        for name in self.HISTOGRAMS:
            if name in packed:
                getattr(self, name).merge(Histogram.unpacked(packed[name]))
        self.errors.update(packed["errors"])

    def packed(self) -> Packed:
        """As plain values; empty histograms are left out."""
        counts = {name: getattr(self, name) for name in self.COUNTS}
        histograms = {name: one.packed() for name in self.HISTOGRAMS if (one := getattr(self, name)).count}
        return {**counts, **histograms, "errors": dict(self.errors)}


class Numbers(_Part):
    """What is counted of the requests that were due in the measured stage."""

    COUNTS = ("requests", "ok", "cancelled", "good", "output_tokens", "input_tokens")
    HISTOGRAMS = ("ttft", "itl", "tpot", "e2e", "ttft_sent", "e2e_sent", "stall")
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


class Second(_Part):
    """What happened in one second."""

    COUNTS = ("due", "sent", "ended", "ok", "cancelled", "in_flight", "output_tokens")
    HISTOGRAMS = ("ttft", "itl", "tpot", "e2e")
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


class Tally:
    """All of it."""

    def __init__(self, per_request: Mapping[str, float] | None = None) -> None:
        """`per_request`: the SLO's limits of a good request, in milliseconds."""
        self._limits = dict(per_request or {})
        self._clear()

    def _clear(self) -> None:
        self.groups: dict[tuple[str, str], Numbers] = {}
        self.seconds: dict[int, Second] = {}
        self.lateness = Histogram()
        # Of the requests due in the measured stage: all, those begun in time to count as sent, those never begun.
        self.asked = 0
        self.begun = 0
        self.dropped = 0
        self.checked_streams = 0
        self.verified_tokens = 0
        self.violations: Counter[str] = Counter()
        self.examples: list[str] = []

    # Facts.

    def due(self, window: Window, at_ns: int) -> None:
        """A request was due."""
        self.second(window.second(at_ns)).due += 1
        self.asked += window.measures(at_ns)

    def drop(self, window: Window, at_ns: int, workload: str, tenant: str) -> None:
        """A request was due and could not be sent, because too many were in flight."""
        kind = ErrorKind.DROPPED_ARRIVAL
        self.second(window.second(at_ns)).errors[kind] += 1
        if window.measures(at_ns):
            self.dropped += 1
            group = self.group(workload, tenant)
            group.requests += 1
            group.errors[kind] += 1

    def started(self, window: Window, record: Record) -> None:
        """The generator has turned to a request. What comes then (connecting, too) is the server's time."""
        self.second(window.second(record.started_ns)).sent += 1
        if window.measures(record.intended_ns):
            self.lateness.add((record.started_ns - record.intended_ns) // 1000)
            self.begun += record.started_ns < window.drain_ns + _GRACE_NS

    def ended(self, window: Window, record: Record, breathe: Callable[[], object] = lambda: None) -> None:
        """A request has ended. `breathe` is called now and then where that takes long."""
        group = self.group(record.workload, record.tenant)
        counts = window.measures(record.intended_ns)
        self._count(window, record, group if counts else None)
        self._count_times(window, record, group if counts else None)
        self._count_tokens(window, record, group, counts, breathe)
        if counts:
            self._check(record)

    def _count(self, window: Window, record: Record, group: Numbers | None) -> None:
        for part in (self.second(window.second(record.ended_ns)), group):
            if part is None:
                continue
            if record.error is not None:
                part.errors[record.error] += 1
            elif record.left_by_plan:
                part.cancelled += 1
            else:
                part.ok += 1
            if isinstance(part, Second):
                part.ended += 1
            else:
                part.requests += 1
                part.input_tokens += record.prompt_tokens
                part.good += self._is_good(record)

    def _count_times(self, window: Window, record: Record, group: Numbers | None) -> None:
        first_ns = record.ttft_from_ns
        if first_ns and record.counts_ttft:
            self.second(window.second(first_ns)).ttft.add((first_ns - record.intended_ns) // 1000)
            if group is not None:
                group.ttft.add((first_ns - record.intended_ns) // 1000)
                group.ttft_sent.add((first_ns - record.sent_ns) // 1000)
        if not record.counts_whole:
            return
        second, tpot = self.second(window.second(record.done_ns)), record.tpot_us
        second.e2e.add((record.done_ns - record.intended_ns) // 1000)
        if tpot is not None:
            second.tpot.add(tpot)
        if group is not None:
            group.e2e.add((record.done_ns - record.intended_ns) // 1000)
            group.e2e_sent.add((record.done_ns - record.sent_ns) // 1000)
            if tpot is not None:
                group.tpot.add(tpot)

    def _count_tokens(
        self, window: Window, record: Record, group: Numbers, counts: bool, breathe: Callable[[], object]
    ) -> None:
        times = record.content_ns
        if not record.stream:
            self.second(window.second(record.ended_ns)).output_tokens += record.output_tokens
            group.output_tokens += record.output_tokens if window.measures(record.ended_ns) else 0
            return
        for at_ns, tokens in zip(times, record.content_tokens, strict=True):
            self.second(window.second(at_ns)).output_tokens += tokens
            if window.measures(at_ns):
                group.output_tokens += tokens
        if not record.counts_gaps:
            return
        for number, (before_ns, at_ns) in enumerate(pairwise(times), 1):
            gap = (at_ns - before_ns) // 1000
            self.second(window.second(at_ns)).itl.add(gap)
            if counts:
                group.itl.add(gap)
            if number % _BREATHE_EVERY == 0:
                breathe()
        if counts and (longest := record.max_gap_us) is not None:
            group.stall.add(longest)

    def _is_good(self, record: Record) -> bool:
        if not record.ok:
            return False
        first_ns, tpot = record.ttft_from_ns, record.tpot_us
        measured: dict[str, float | None] = {
            "ttft_ms": (first_ns - record.intended_ns) / 1e6 if first_ns and record.counts_ttft else None,
            "tpot_ms": tpot / 1000 if tpot is not None and record.counts_whole else None,
            "e2e_ms": (record.done_ns - record.intended_ns) / 1e6 if record.counts_whole else None,
        }
        return all((value := measured[name]) is None or value <= limit for name, limit in self._limits.items())

    def _check(self, record: Record) -> None:
        self.checked_streams += record.stream and record.status == 200
        self.verified_tokens += record.verified_tokens
        if record.error in UNTRUE:
            self.violations[record.error] += 1
            if len(self.examples) < _EXAMPLES:
                name = record.completion_id or record.request_id or f"arrival {record.number}"
                self.examples.append(f"{record.error}: {name} ({record.workload}): {record.detail}")

    # Parts.

    def group(self, workload: str, tenant: str) -> Numbers:
        """The numbers of one workload for one tenant."""
        key = (workload, tenant)
        if key not in self.groups:
            self.groups[key] = Numbers()
        return self.groups[key]

    def second(self, number: int) -> Second:
        """One second's."""
        if number not in self.seconds:
            self.seconds[number] = Second()
        return self.seconds[number]

    def whole(self) -> Numbers:
        """All groups together."""
        made = Numbers()
        for one in self.groups.values():
            made.merge(one.packed())
        return made

    def in_order(self) -> Iterator[tuple[int, Second]]:
        """The seconds, none left out."""
        for number in range(max(self.seconds, default=-1) + 1):
            yield number, self.second(number)

    # Between processes.

    def take(self) -> Packed:
        """All that was counted since the last call, as plain values."""
        packed = {
            "groups": [[*key, one.packed()] for key, one in self.groups.items()],
            "seconds": [[number, one.packed()] for number, one in self.seconds.items()],
            "lateness": self.lateness.packed(),
            "asked": self.asked,
            "begun": self.begun,
            "dropped": self.dropped,
            "checked_streams": self.checked_streams,
            "verified_tokens": self.verified_tokens,
            "violations": dict(self.violations),
            "examples": self.examples,
        }
        self._clear()
        return packed

    def merge(self, packed: Mapping[str, Any]) -> None:
        """Add what another one took."""
        for workload, tenant, numbers in packed["groups"]:
            self.group(workload, tenant).merge(numbers)
        for number, second in packed["seconds"]:
            self.second(number).merge(second)
        self.lateness.merge(Histogram.unpacked(packed["lateness"]))
        self.asked += packed["asked"]
        self.begun += packed["begun"]
        self.dropped += packed["dropped"]
        self.checked_streams += packed["checked_streams"]
        self.verified_tokens += packed["verified_tokens"]
        self.violations.update(packed["violations"])
        self.examples = [*self.examples, *packed["examples"]][:_EXAMPLES]
