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

__all__ = ["RequestRunner"]


class _PlannedHandler:
    """Passes a response to its reader; aborts or pauses when the read plan demands it."""

    def __init__(self, request: PreparedRequest, reader: ResponseReader, runner: RequestRunner) -> None:
        self.stream_id = ""
        self._runner = runner
        self.connection: Connection | None = None
        self._plan = request.read_plan
        self._reader = reader
        self._next_stop_at = request.read_plan.after_events or 0
        self._remaining_stops = 1 if request.read_plan.read_mode is ReadMode.STALL else request.read_plan.times
        self.must_resume = False

    def on_first_byte(self, at_ns: int) -> None:
        self._reader.on_first_byte(at_ns)

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.stream_id = self.stream_id or headers.get("x-stream-id", "")
        self._reader.on_head(status, headers.get("content-type", ""), headers.get("x-request-id", ""))

    def on_body(self, at_ns: int, data: bytes) -> None:
        before = self._reader.record.events
        self._reader.on_body(at_ns, data)
        self._runner.events += self._reader.record.events - before
        if self._plan.after_events is not None:
            self._follow_read_plan()

    def _follow_read_plan(self) -> None:
        plan, reader, connection = self._plan, self._reader, self.connection
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
        record = Record(
            request.number,
            request.turn,
            request.workload,
            request.tenant,
            request.model,
            request.stream,
            request.read_plan.read_mode,
            intended_ns,
        )
        record.started_ns = perf_counter_ns()
        on_start(record)
        reader = ResponseReader(request, record)
        headers = {"Accept": "text/event-stream" if request.stream else "application/json", **request.headers}
        payload = self._pool.address.request("POST", request.path, headers, request.body)
        handler = _PlannedHandler(request, reader, self)
        end, detail = self._exchange(payload, request, handler, record)
        while end is TransportEnd.ABORTED and handler.must_resume:
            handler.must_resume = False
            end, detail = self._resume(request, reader, handler, record)
        return reader.finish(perf_counter_ns(), end, detail), reader.text

    def _exchange(
        self, payload: bytes, request: PreparedRequest, handler: _PlannedHandler, record: Record
    ) -> tuple[TransportEnd, str]:
        timeouts, plan = self._timeouts, request.read_plan
        pace = ReadPace(plan.bytes_per_s, small_buffer=plan.read_mode in {ReadMode.SLOW, ReadMode.STALL})
        try:
            connection = self._pool.acquire(pace)
        except ConnectionFailed as error:
            return error.end, str(error)
        handler.connection = connection
        try:
            record.sent_ns = record.sent_ns or perf_counter_ns()
            connection.send(payload, timeouts.connect_s)
            abort_after_s = plan.abort_after_s
            deadlines = Deadlines(
                timeouts.first_byte_s,
                timeouts.idle_s,
                min(self._end_ns, record.sent_ns + int(timeouts.deadline_s * 1e9)),
                None if abort_after_s is None else record.sent_ns + int(abort_after_s * 1e9),
            )
            return connection.receive(handler, deadlines)
        except OSError as error:
            return TransportEnd.RESET, str(error)
        finally:
            # Also when the greenlet is killed.
            self._pool.release(connection)

    def _resume(
        self, request: PreparedRequest, reader: ResponseReader, handler: _PlannedHandler, record: Record
    ) -> tuple[TransportEnd, str]:
        """Continue the stream on a new connection."""
        reader.on_reconnect()
        record.resumed += 1
        gevent.sleep(request.read_plan.away_s)
        headers = {
            "Accept": "text/event-stream",
            "Last-Event-ID": (reader.last_id or b"0").decode("latin-1"),
            **{name: value for name, value in request.headers.items() if name == "Authorization"},
        }
        stream_id = handler.stream_id or record.completion_id
        payload = self._pool.address.request("GET", f"/v1/streams/{stream_id}", headers)
        return self._exchange(payload, request, handler, record)
