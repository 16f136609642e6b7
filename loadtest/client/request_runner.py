"""One request from the first byte to the last: the connection, the reading, and the client's behaviour between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns

import gevent

from loadtest.client.connection import Connection, ConnectionFailed, Pace, Waits
from loadtest.client.pool import Pool
from loadtest.client.response import End, Reading
from loadtest.measure.record import Manner, Record
from loadtest.scenario.model import Timeouts
from loadtest.scenario.workload import Ask

__all__ = ["Asker"]


class _Listener:
    """Passes an answer on to its reading, and leaves or pauses when the plan says so."""

    def __init__(self, ask: Ask, reading: Reading, asker: Asker) -> None:
        self.stream_id = ""
        self._asker = asker
        self.connection: Connection | None = None
        self._plan = ask.plan
        self._reading = reading
        self._next_stop = ask.plan.after_events or 0
        self._stops = 1 if ask.plan.manner is Manner.STALL else ask.plan.times
        self.is_cut = False

    def first_byte(self, at_ns: int) -> None:
        self._reading.first_byte(at_ns)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.stream_id = self.stream_id or headers.get("x-stream-id", "")
        self._reading.head(status, headers.get("content-type", ""), headers.get("x-request-id", ""))

    def body(self, at_ns: int, data: bytes) -> None:
        before = self._reading.record.events
        self._reading.body(at_ns, data)
        self._asker.events += self._reading.record.events - before
        if self._plan.after_events is not None:
            self._behave()

    def _behave(self) -> None:
        plan, reading, connection = self._plan, self._reading, self.connection
        assert connection is not None
        if plan.manner is Manner.CANCEL:
            if reading.content_events >= self._next_stop and not reading.done:
                connection.leave()
        elif self._stops and reading.record.events >= self._next_stop and not reading.done:
            self._stops -= 1
            self._next_stop = reading.record.events + (plan.after_events or 0)
            if plan.manner is Manner.STALL:
                connection.pause(plan.pause_s)
            else:
                self.is_cut = True
                connection.leave()


class Asker:
    """Sends requests, one greenlet each."""

    def __init__(self, pool: Pool, timeouts: Timeouts, end_ns: int) -> None:
        """`end_ns`: when the run is over for every request."""
        self.events = 0
        self._pool = pool
        self._timeouts = timeouts
        self._end_ns = end_ns

    def perform(self, ask: Ask, intended_ns: int, on_start: Callable[[Record], object]) -> tuple[Record, str]:
        """Send a request and read its answer; what became of it, and its text if it was to be kept."""
        record = Record(
            ask.number, ask.turn, ask.workload, ask.tenant, ask.model, ask.stream, ask.plan.manner, intended_ns
        )
        record.started_ns = perf_counter_ns()
        on_start(record)
        reading = Reading(ask, record)
        headers = {"Accept": "text/event-stream" if ask.stream else "application/json", **ask.headers}
        payload = self._pool.address.request("POST", ask.path, headers, ask.body)
        listener = _Listener(ask, reading, self)
        end, detail = self._exchange(payload, ask, listener, record)
        while end is End.LEFT and listener.is_cut:
            listener.is_cut = False
            end, detail = self._resume(ask, reading, listener, record)
        return reading.end(perf_counter_ns(), end, detail), reading.text

    def _exchange(self, payload: bytes, ask: Ask, listener: _Listener, record: Record) -> tuple[End, str]:
        timeouts, plan = self._timeouts, ask.plan
        pace = Pace(plan.bytes_per_s, small_buffer=plan.manner in {Manner.SLOW, Manner.STALL})
        try:
            connection = self._pool.take(pace)
        except ConnectionFailed as error:
            return error.end, str(error)
        listener.connection = connection
        try:
            record.sent_ns = record.sent_ns or perf_counter_ns()
            connection.send(payload, timeouts.connect_s)
            leave_s = plan.leave_after_s
            waits = Waits(
                timeouts.first_byte_s,
                timeouts.idle_s,
                min(self._end_ns, record.sent_ns + int(timeouts.deadline_s * 1e9)),
                None if leave_s is None else record.sent_ns + int(leave_s * 1e9),
            )
            return connection.receive(listener, waits)
        except OSError as error:
            return End.RESET, str(error)
        finally:
            # Also when the greenlet is killed.
            self._pool.give_back(connection)

    def _resume(self, ask: Ask, reading: Reading, listener: _Listener, record: Record) -> tuple[End, str]:
        """Come back for the rest."""
        reading.cut()
        record.resumed += 1
        gevent.sleep(ask.plan.away_s)
        headers = {
            "Accept": "text/event-stream",
            "Last-Event-ID": (reading.last_id or b"0").decode("latin-1"),
            **{name: value for name, value in ask.headers.items() if name == "Authorization"},
        }
        stream_id = listener.stream_id or record.completion_id
        payload = self._pool.address.request("GET", f"/v1/streams/{stream_id}", headers)
        return self._exchange(payload, ask, listener, record)
