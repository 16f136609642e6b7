"""One worker's part of a run: releases arrivals when they are due, or lets users ask in a closed loop.

Open loop: one greenlet walks along the schedule and starts a greenlet for each arrival, whatever became of the others.
What is late is sent at once, and counts from when it was due. The next request is made ready before its time comes.
Knows nothing of Locust; what became of each request goes to `on_record`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

import gevent
from gevent.pool import Pool as Greenlets

from loadtest.client import tls
from loadtest.client.connection import Address
from loadtest.client.pool import Pool
from loadtest.client.request_runner import Asker
from loadtest.generator.health import Health, Probe
from loadtest.generator.precise_timer import Alarm
from loadtest.generator.request_log import RequestLog
from loadtest.measure.aggregates import Tally, Window
from loadtest.measure.record import Record
from loadtest.scenario import traces
from loadtest.scenario.arrivals import Closed, Trace, dealt
from loadtest.scenario.model import Scenario
from loadtest.scenario.traces import Arrival
from loadtest.scenario.workload import Ask, Conversation, Served, Work

__all__ = ["Host", "Part"]

# A fault of the generator repeats itself; some are enough to find it.
_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of the run is this worker's, and when the run begins on its clock."""

    index: int
    count: int
    began_ns: int


class Host:
    """Of one worker and one run."""

    def __init__(
        self,
        scenario: Scenario,
        served: Served,
        *,
        url: str,
        keys: dict[str, str],
        part: Part,
        log_file: Path | None,
        on_record: Callable[[Record], object],
    ) -> None:
        """Raises ValueError if the URL is none."""
        stages = scenario.stages
        self._scenario = scenario
        self._part = part
        self._arrivals_end_ns = part.began_ns + int(stages.arrivals_s * 1e9)
        self._end_ns = self._arrivals_end_ns + int(stages.drain_s * 1e9)
        self._window = Window.of(part.began_ns, stages.warmup_s, stages.measure_s)
        self._connections = Pool(Address.of(url, tls.context(scenario.tls_verify)), scenario.timeouts.connect_s)
        self._asker = Asker(self._connections, scenario.timeouts, self._end_ns)
        self._work = Work(scenario, served, keys)
        self._on_record = on_record
        self._log = RequestLog(log_file, part.began_ns) if log_file is not None else None
        self._probe = Probe(self._window, lambda: self._asker.events)
        self._requests = Greenlets(scenario.max_in_flight)
        self._own = Greenlets()
        self._in_flight = 0
        self._next_number = part.index
        # What went wrong in the generator itself; a run with any of these proves nothing.
        self.failures: list[str] = []
        self.tally = Tally(scenario.slo.per_request)

    @property
    def health(self) -> Health:
        """How the generator did in the measured stage."""
        return self._probe.health

    def start(self) -> None:
        """Begin; returns at once."""
        self._probing = self._own.spawn(self._probe.run)
        self._own.spawn(self._count_in_flight)
        if not isinstance(self._scenario.load, Closed):
            self._own.spawn(self._release).link_exception(self._note)

    def join(self) -> None:
        """Wait until every request of the run has ended, or the drain is over, and close everything."""
        gevent.sleep(max(0.0, (self._arrivals_end_ns - perf_counter_ns()) / 1e9))
        # A second more than requests have: they end by themselves then, as errors.
        while (self._requests or self._in_flight) and perf_counter_ns() < self._end_ns + 1_000_000_000:
            gevent.sleep(0.05)
        self._probing.join(1.0)
        self.stop()

    def stop(self) -> None:
        """End all of it now. Requests still in flight are forgotten."""
        self._requests.kill()
        self._own.kill()
        self._connections.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _note(self, greenlet: gevent.Greenlet) -> None:
        if len(self.failures) < _FAILURES:
            self.failures.append(f"the generator failed: {greenlet.exception!r}")

    # Open loop.

    def _release(self) -> None:
        alarm = Alarm()
        try:
            for number, arrival in dealt(self._schedule(), self._part.index, self._part.count):
                talk = self._work.conversation(arrival, number)
                ask = talk.next()
                assert ask is not None
                due_ns = self._part.began_ns + int(arrival.at_s * 1e9)
                alarm.sleep_until(due_ns)
                self.tally.due(self._window, due_ns)
                if self._requests.full():
                    self.tally.drop(self._window, due_ns, ask.workload, ask.tenant)
                else:
                    self._requests.spawn(self._converse, talk, ask, due_ns).link_exception(self._note)
        finally:
            alarm.close()

    def _schedule(self) -> Iterator[Arrival]:
        load, length_s = self._scenario.load, self._scenario.stages.arrivals_s
        assert not isinstance(load, Closed)
        if isinstance(load, Trace):
            return traces.arrivals(load, self._scenario.seed, length_s)
        return (Arrival(at_s) for at_s in load.times(self._scenario.seed, length_s))

    # Closed loop.

    def use(self) -> None:
        """Be one user of a closed loop until no more requests may begin."""
        load = self._scenario.load
        assert isinstance(load, Closed)
        if (early_ns := self._part.began_ns - perf_counter_ns()) > 0:
            gevent.sleep(early_ns / 1e9)
        while (due_ns := perf_counter_ns()) < self._arrivals_end_ns:
            number, self._next_number = self._next_number, self._next_number + self._part.count
            talk = self._work.conversation(Arrival(0.0), number)
            ask = talk.next()
            assert ask is not None
            self.tally.due(self._window, due_ns)
            self._converse(talk, ask, due_ns)
            gevent.sleep(load.think_s.draw(talk.chance))

    # Both.

    def _converse(self, talk: Conversation, ask: Ask | None, due_ns: int) -> None:
        """One turn after the other, as long as they end well and there is time to ask."""
        while ask is not None:
            record, text = self._perform(ask, due_ns)
            ask = talk.next(text, record.prompt_tokens + record.output_tokens) if record.ok else None
            if ask is not None:
                due_ns = perf_counter_ns() + int(talk.think_s() * 1e9)
                if due_ns >= self._arrivals_end_ns:
                    return
                gevent.sleep((due_ns - perf_counter_ns()) / 1e9)
                self.tally.due(self._window, due_ns)

    def _perform(self, ask: Ask, due_ns: int) -> tuple[Record, str]:
        self._in_flight += 1
        try:
            record, text = self._asker.perform(ask, due_ns, lambda begun: self.tally.started(self._window, begun))
        finally:
            self._in_flight -= 1
        self.tally.ended(self._window, record, lambda: gevent.sleep(0))
        if self._log is not None:
            self._log.add(record)
        self._on_record(record)
        return record, text

    def _count_in_flight(self) -> None:
        second = 0
        while True:
            ends_ns = self._part.began_ns + (second + 1) * 1_000_000_000
            gevent.sleep(max(0.0, (ends_ns - perf_counter_ns()) / 1e9))
            self.tally.second(second).in_flight += self._in_flight
            second += 1
