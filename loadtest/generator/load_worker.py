"""One worker's part of a run: starts requests when they are due, or runs the users of a closed loop.

Open loop: one greenlet follows the schedule and starts a greenlet for each arrival, whatever the state of the others. A
late request is sent at once, and counts from when it was due. The next request is prepared before it is due. This
module does not import Locust; the record of each request goes to `on_record`.
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
from loadtest.client.pool import ConnectionPool
from loadtest.client.request_runner import RequestRunner
from loadtest.generator.health import GeneratorHealth, HealthProbe
from loadtest.generator.precise_timer import PreciseTimer
from loadtest.generator.request_log import RequestLog
from loadtest.measure.aggregates import Aggregates, Window
from loadtest.measure.record import Record
from loadtest.scenario import traces
from loadtest.scenario.arrivals import ClosedLoop, TraceReplay, worker_share
from loadtest.scenario.model import Scenario
from loadtest.scenario.traces import Arrival
from loadtest.scenario.workload import Conversation, PreparedRequest, RequestFactory, ServerInfo

# Failures of the generator repeat themselves; some are enough for a diagnosis.
_FAILURES_KEPT = 5


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """The share of one worker, and when the run begins on its clock."""

    index: int
    count: int
    began_ns: int


class LoadWorker:
    """One worker of one run."""

    def __init__(
        self,
        scenario: Scenario,
        server_info: ServerInfo,
        *,
        url: str,
        keys: dict[str, str],
        share: WorkerShare,
        log_file: Path | None,
        on_record: Callable[[Record], object],
    ) -> None:
        """Raises ValueError if the URL is invalid."""
        stages = scenario.stages
        self._scenario = scenario
        self._share = share
        self._arrivals_end_ns = share.began_ns + int(stages.arrivals_s * 1e9)
        self._end_ns = self._arrivals_end_ns + int(stages.drain_s * 1e9)
        self._window = Window.from_stages(share.began_ns, stages.warmup_s, stages.measure_s)
        self._connections = ConnectionPool(
            Address.from_url(url, tls.make_ssl_context(scenario.tls_verify)), scenario.timeouts.connect_s
        )
        self._runner = RequestRunner(self._connections, scenario.timeouts, self._end_ns)
        self._factory = RequestFactory(scenario, server_info, keys)
        self._on_record = on_record
        self._log = RequestLog(log_file, share.began_ns) if log_file is not None else None
        self._probe = HealthProbe(self._window, lambda: self._runner.events)
        self._requests = Greenlets(scenario.max_in_flight)
        self._background = Greenlets()
        self._in_flight = 0
        self._next_number = share.index
        # Failures of the generator itself; a run with any of these proves nothing.
        self.failures: list[str] = []
        self.aggregates = Aggregates(scenario.slo.per_request)

    @property
    def health(self) -> GeneratorHealth:
        """Measurements of the generator over the measured stage."""
        return self._probe.health

    def start(self) -> None:
        """Start the greenlets; returns at once."""
        self._probe_greenlet = self._background.spawn(self._probe.run)
        self._background.spawn(self._count_in_flight)
        if not isinstance(self._scenario.load, ClosedLoop):
            self._background.spawn(self._release_arrivals).link_exception(self._note_failure)

    def join(self) -> None:
        """Wait until every request of the run has ended, or the drain is over, and close everything."""
        gevent.sleep(max(0.0, (self._arrivals_end_ns - perf_counter_ns()) / 1e9))
        # One second more than the requests have, so that they end by themselves, as errors.
        while (self._requests or self._in_flight) and perf_counter_ns() < self._end_ns + 1_000_000_000:
            gevent.sleep(0.05)
        self._probe_greenlet.join(1.0)
        self.stop()

    def stop(self) -> None:
        """End everything now. Requests still in flight are not recorded."""
        self._requests.kill()
        self._background.kill()
        self._connections.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _note_failure(self, greenlet: gevent.Greenlet) -> None:
        if len(self.failures) < _FAILURES_KEPT:
            self.failures.append(f"the generator failed: {greenlet.exception!r}")

    # Open loop.

    def _release_arrivals(self) -> None:
        timer = PreciseTimer()
        try:
            for number, arrival in worker_share(self._schedule(), self._share.index, self._share.count):
                conversation = self._factory.conversation(arrival, number)
                request = conversation.next_request()
                assert request is not None
                due_ns = self._share.began_ns + int(arrival.at_s * 1e9)
                timer.sleep_until(due_ns)
                self.aggregates.on_due(self._window, due_ns)
                if self._requests.full():
                    self.aggregates.on_dropped(self._window, due_ns, request.workload, request.tenant)
                else:
                    self._requests.spawn(self._run_conversation, conversation, request, due_ns).link_exception(
                        self._note_failure
                    )
        finally:
            timer.close()

    def _schedule(self) -> Iterator[Arrival]:
        load, duration_s = self._scenario.load, self._scenario.stages.arrivals_s
        assert not isinstance(load, ClosedLoop)
        if isinstance(load, TraceReplay):
            return traces.read_trace(load, self._scenario.seed, duration_s)
        return (Arrival(at_s) for at_s in load.arrival_times(self._scenario.seed, duration_s))

    # Closed loop.

    def run_user(self) -> None:
        """Run one user of a closed loop until the arrivals end."""
        load = self._scenario.load
        assert isinstance(load, ClosedLoop)
        if (early_ns := self._share.began_ns - perf_counter_ns()) > 0:
            gevent.sleep(early_ns / 1e9)
        while (due_ns := perf_counter_ns()) < self._arrivals_end_ns:
            number, self._next_number = self._next_number, self._next_number + self._share.count
            conversation = self._factory.conversation(Arrival(0.0), number)
            request = conversation.next_request()
            assert request is not None
            self.aggregates.on_due(self._window, due_ns)
            self._run_conversation(conversation, request, due_ns)
            gevent.sleep(load.think_s.sample(conversation.rng))

    # Both.

    def _run_conversation(self, conversation: Conversation, request: PreparedRequest | None, due_ns: int) -> None:
        """One turn after the other, as long as they end well and arrivals have not ended."""
        while request is not None:
            record, text = self._run_request(request, due_ns)
            request = (
                conversation.next_request(text, record.prompt_tokens + record.output_tokens) if record.is_ok else None
            )
            if request is not None:
                due_ns = perf_counter_ns() + int(conversation.think_s() * 1e9)
                if due_ns >= self._arrivals_end_ns:
                    return
                gevent.sleep((due_ns - perf_counter_ns()) / 1e9)
                self.aggregates.on_due(self._window, due_ns)

    def _run_request(self, request: PreparedRequest, due_ns: int) -> tuple[Record, str]:
        self._in_flight += 1
        try:
            record, text = self._runner.run(
                request, due_ns, lambda begun: self.aggregates.on_started(self._window, begun)
            )
        finally:
            self._in_flight -= 1
        self.aggregates.on_ended(self._window, record, lambda: gevent.sleep(0))
        if self._log is not None:
            self._log.add(record)
        self._on_record(record)
        return record, text

    def _count_in_flight(self) -> None:
        second = 0
        while True:
            ends_ns = self._share.began_ns + (second + 1) * 1_000_000_000
            gevent.sleep(max(0.0, (ends_ns - perf_counter_ns()) / 1e9))
            self.aggregates.second(second).in_flight += self._in_flight
            second += 1
