"""Measures the generator itself: the lag of its loop, and its CPU time.

A greenlet sleeps for 10 ms at a time and records how late it wakes. CPU time is the kernel's count for this process,
over five seconds: shorter windows show the work of one burst, longer ones hide it.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

from loadtest.generator.precise_timer import PreciseTimer
from loadtest.measure.aggregates import Window
from loadtest.measure.histogram import Histogram

_EVERY_NS = 10_000_000
_CPU_WINDOW_NS = 5_000_000_000


@dataclass(slots=True)
class GeneratorHealth:
    """Of one worker, over the measured stage."""

    lag: Histogram = field(default_factory=Histogram)
    cpu_share_max: float = 0.0
    cpu_us: int = 0
    events: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"lag": self.lag.to_dict(), "cpu": self.cpu_share_max, "cpu_us": self.cpu_us, "events": self.events}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> GeneratorHealth:
        return cls(Histogram.from_dict(document["lag"]), document["cpu"], document["cpu_us"], document["events"])


class HealthProbe:
    """Runs in a greenlet until the measured stage is over."""

    def __init__(self, window: Window, events: Callable[[], int]) -> None:
        """`events`: returns the number of events read so far."""
        self.health = GeneratorHealth()
        self._window = window
        self._events = events

    def run(self) -> None:
        timer = PreciseTimer()
        try:
            timer.sleep_until(self._window.measure_ns)
            self._watch(timer)
        finally:
            timer.close()

    def _watch(self, timer: PreciseTimer) -> None:
        began_us, events = _cpu_us(), self._events()
        at_ns, mark_ns, mark_us = perf_counter_ns(), perf_counter_ns(), began_us
        while at_ns < self._window.drain_ns:
            due_ns = at_ns + _EVERY_NS
            timer.sleep_until(due_ns)
            at_ns = perf_counter_ns()
            self.health.lag.add((at_ns - due_ns) // 1000)
            if at_ns - mark_ns >= _CPU_WINDOW_NS or (at_ns >= self._window.drain_ns and mark_us == began_us):
                now_us = _cpu_us()
                share = (now_us - mark_us) * 1000 / (at_ns - mark_ns)
                self.health.cpu_share_max = max(self.health.cpu_share_max, round(share, 3))
                mark_ns, mark_us = at_ns, now_us
        self.health.cpu_us = _cpu_us() - began_us
        self.health.events = self._events() - events


def _cpu_us() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int((used.ru_utime + used.ru_stime) * 1e6)
