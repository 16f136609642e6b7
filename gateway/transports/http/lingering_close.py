"""The end of a connection: a response reaches a client that is still sending, and no client can send for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import HeadersTooSlow, SluiceError
from gateway.transports.http.error_response import error_response

# After a response that came before the end of its request, this much input is read and dropped. Closing at once would
# make the kernel send a reset, and a client that is still sending would lose the response.
LINGER_S = 10.0
LINGER_BYTES = 32 * 2**20
# A timer that is this late shows that this process was blocked, not that the client was slow.
LATE_S = 1.0


class LingeringConnection(HttpToolsProtocol):
    """uvicorn's HTTP protocol with refusals before a request is complete, and a lingering close."""

    header_timeout_s = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._in_head = True
        self._head_bytes = 0
        self._held_bytes = bytearray()
        """Input behind a request that is being answered."""
        self._reading_stopped = False
        self._active_cycle: Any = None
        """The request cycle whose application runs; `cycle` is that of the newest request."""
        self.body_error: SluiceError | None = None
        """The reason why the rest of the current request's body is dropped."""
        self._lingering = False
        self._linger_bytes = LINGER_BYTES
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._response_transport = _ResponseTransport(self, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._held_bytes.clear()
        running = self._active_cycle
        super().connection_lost(exc)
        if running is not None and running is not self.cycle and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        # Reference cycles are freed only by a garbage collection, which is rare here.
        self._response_transport.connection = self.scope = self.headers = self.cycle = self._active_cycle = None  # type: ignore[assignment]

    def _release_body(self) -> None:
        """Release the memory and timer of the current request's body."""

    def _discard(self, count: int) -> None:
        self._linger_bytes -= count
        if self._linger_bytes < 0:
            self.transport.abort()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_rejecting_body(self) -> bool:
        """Whether the rest of the current body is dropped."""
        return self.body_error is not None and not self._in_head

    def _is_ending(self) -> bool:
        """Whether the connection takes no more requests."""
        return self._lingering or self.transport.is_closing()

    def close_after_answer(self) -> None:
        """Close after the last response. A client that is still sending gets time to read it."""
        cycle = self._active_cycle
        if (
            cycle is None
            or not cycle.response_complete
            or (self._in_head and not self._held_bytes and not self.pipeline)
        ):
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Send nothing more, drop all input, and close when the client does or after `LINGER_S`."""
        if self._is_ending():
            return
        self._lingering = True
        self._stop_timer()
        self._release_body()
        self._unset_keepalive_if_required()
        self._held_bytes.clear()
        self._linger_bytes = LINGER_BYTES
        self.flow.resume_reading()
        if self._reading_stopped:
            self._reading_stopped = False
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _start_header_timer(self) -> None:
        self._stop_timer()
        if self._is_answering():
            # A client that sends ahead during a response has no time limit yet.
            return
        self._due_s = self.loop.time() + self.header_timeout_s
        self._timer = self.loop.call_at(self._due_s, self._on_header_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_header_timeout(self) -> None:
        if self._is_ending():
            return
        if self.loop.time() - self._due_s > LATE_S:
            self._start_header_timer()
            return
        if self._head_bytes == 0 or not self.url:
            # No input, or a stray line break after the last request.
            self.transport.close()
        else:
            self._refuse(HeadersTooSlow(f"The request's headers were not complete after {self.header_timeout_s:g} s."))

    def _refuse(self, error: SluiceError) -> None:
        """Respond to an incomplete request, then close. During another response, which this one would become a part of,
        only close."""
        self._stop_timer()
        if self._is_answering():
            self.transport.close()
            return
        path = self.url.partition(b"?")[0].decode("latin-1")
        status, headers, body = error_response(error, path)
        lines = b"".join(b"%b: %b\r\n" % header for header in [*headers, (b"connection", b"close")])
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        self._linger()


class _ResponseTransport:
    """The transport for responses: `close` does not cut a response off."""

    def __init__(self, connection: LingeringConnection, transport: asyncio.Transport) -> None:
        self.connection: LingeringConnection | None = connection
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close_after_answer()
