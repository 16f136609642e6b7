"""Runs one request: connects, sends, reads the response, and behaves as its read plan demands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns

import gevent

from loadtest.client.connection import Connection, ConnectionFailed, Deadlines, ReadPace
from loadtest.client.pool import ConnectionPool
from loadtest.client.response import ResponseReader, TransportEnd
from loadtest.measure.record import ReadMode, Record
from loadtest.scenario.model import Timeouts
from loadtest.scenario.workload import PreparedRequest


class _PlannedHandler:
    """Passes a response to its reader; aborts or pauses when the read plan demands it."""

    def __init__(self, request: PreparedRequest, reader: ResponseReader, runner: RequestRunner) -> None:
        self.stream_id = ""
        self._runner = runner
        self.connection: Connection | None = None
        self.request = request
        self.plan = request.read_plan
        self.reader = reader
        self._next_stop_at = request.read_plan.after_events or 0
        self._remaining_stops = 1 if request.read_plan.read_mode is ReadMode.STALL else request.read_plan.times
        self.must_resume = False

    def on_first_byte(self, at_ns: int) -> None:
        self.reader.on_first_byte(at_ns)

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.stream_id = self.stream_id or headers.get("x-stream-id", "")
        self.reader.on_head(status, headers.get("content-type", ""), headers.get("x-request-id", ""))

    def on_body(self, at_ns: int, data: bytes) -> None:
        before = self.reader.record.events
        self.reader.on_body(at_ns, data)
        self._runner.events += self.reader.record.events - before
        if self.plan.after_events is not None:
            self._follow_read_plan()

    def _follow_read_plan(self) -> None:
        plan, reader, connection = self.plan, self.reader, self.connection
        assert connection is not None
        if plan.read_mode is ReadMode.CANCEL:
            if reader.content_events >= self._next_stop_at and not reader.is_done:
                connection.abort()
        elif self._remaining_stops and reader.record.events >= self._next_stop_at and not reader.is_done:
            self._remaining_stops -= 1
            self._next_stop_at = reader.record.events + (plan.after_events or 0)
            if plan.read_mode is ReadMode.STALL:
                connection.pause(plan.pause_s)
            else:
                self.must_resume = True
                connection.abort()


class RequestRunner:
    """Sends requests, one greenlet each."""

    def __init__(self, pool: ConnectionPool, timeouts: Timeouts, end_ns: int) -> None:
        """`end_ns`: when every request of the run must have ended."""
        self.events = 0
        self._pool = pool
        self._timeouts = timeouts
        self._end_ns = end_ns

    def run(
        self, request: PreparedRequest, intended_ns: int, on_start: Callable[[Record], object]
    ) -> tuple[Record, str]:
        """Send a request and read the response. Returns its record, and its text if that was to be kept."""
        record = request.new_record(intended_ns)
        record.started_ns = perf_counter_ns()
        on_start(record)
        handler = _PlannedHandler(request, ResponseReader(request, record), self)
        headers = {"Accept": "text/event-stream" if request.stream else "application/json", **request.headers}
        payload = self._pool.address.request("POST", request.path, headers, request.body)
        end, detail = self._exchange(payload, handler)
        while end is TransportEnd.ABORTED and handler.must_resume:
            handler.must_resume = False
            end, detail = self._resume(handler)
        return handler.reader.finish(perf_counter_ns(), end, detail), handler.reader.text

    def _exchange(self, payload: bytes, handler: _PlannedHandler) -> tuple[TransportEnd, str]:
        timeouts, plan, record = self._timeouts, handler.plan, handler.reader.record
        pace = ReadPace(plan.bytes_per_s, small_buffer=plan.read_mode in {ReadMode.SLOW, ReadMode.STALL})
        try:
            connection = self._pool.acquire(pace)
        except ConnectionFailed as error:
            return error.end, str(error)
        handler.connection = connection
        try:
            record.sent_ns = record.sent_ns or perf_counter_ns()
            connection.send(payload, timeouts.connect_s)
            deadlines = Deadlines(
                timeouts.first_byte_s,
                timeouts.idle_s,
                min(self._end_ns, record.sent_ns + int(timeouts.deadline_s * 1e9)),
                None if plan.abort_after_s is None else record.sent_ns + int(plan.abort_after_s * 1e9),
            )
            return connection.receive(handler, deadlines)
        except OSError as error:
            return TransportEnd.RESET, str(error)
        finally:
            # Also when the greenlet is killed.
            self._pool.release(connection)

    def _resume(self, handler: _PlannedHandler) -> tuple[TransportEnd, str]:
        """Continue the stream on a new connection."""
        reader = handler.reader
        reader.on_reconnect()
        reader.record.resumed += 1
        gevent.sleep(handler.plan.away_s)
        headers = {"Accept": "text/event-stream", "Last-Event-ID": (reader.last_id or b"0").decode("latin-1")}
        headers |= {name: value for name, value in handler.request.headers.items() if name == "Authorization"}
        stream_id = handler.stream_id or reader.record.completion_id
        return self._exchange(self._pool.address.request("GET", f"/v1/streams/{stream_id}", headers), handler)
