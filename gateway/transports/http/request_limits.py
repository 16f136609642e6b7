"""Limits on the size and time of a connection's input, so that no connection costs more than one request.

The parser gets no byte of a request while the previous one is being answered, so no requests queue up behind it.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any
from weakref import WeakKeyDictionary

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from gateway.asgi import ARRIVAL, DIRECT_SINK
from gateway.errors import ClientError, HeadersTooLarge, Overloaded, SluiceError
from gateway.transports.http.body_budget import UNCOUNTED_BYTES, BodyBudget, BodyDeadline
from gateway.transports.http.lingering_close import LATE_S, LINGER_BYTES, LingeringConnection

# A client may send this much ahead of the responses; beyond it the socket is not read until they have caught up.
MAX_HELD_BYTES = 64 * 2**10
# A chunked body is parsed in pieces of this size, since only the parser finds its end: at most this many bytes behind
# it are parsed as requests before the first is answered.
_CHUNKED_PIECE_BYTES = 1024
# After a body was refused, its application has this long to respond.
_ANSWER_WITHIN_S = 5.0

# The parser takes the body of a request that offers another protocol for the start of that protocol, and Java's client
# offers one with each first request. Nothing is upgraded here, so the header is renamed before it is parsed.
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_NO_UPGRADE = b"upgrade-refused"

_budgets: WeakKeyDictionary[Any, BodyBudget] = WeakKeyDictionary()
"""By the `server_state` of a server."""


class LimitedConnection(LingeringConnection):
    """Limits how much a client may send, and how slowly."""

    max_header_bytes = 32 * 2**10
    max_headers = 256
    body_timeout_s = 60.0
    min_body_bytes_per_s = 1024
    max_total_body_bytes = 512 * 2**20

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_began_s = 0.0
        self._keep_alive = True
        self._body_left = 0
        """Bytes of the body that have not arrived; -1: unknown, the body is chunked."""
        self._body_bytes = 0
        self._counted_bytes = 0
        self._unframed_bytes = 0
        """Bytes since the last byte that was part of a body."""
        self._body_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._budget = body_budget(self.server_state) or _budgets.setdefault(
            self.server_state, BodyBudget(self.max_total_body_bytes)
        )
        # The same time limit holds for a connection that sends nothing.
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._release_body()
        super().connection_lost(exc)

    # Input.

    def data_received(self, data: bytes) -> None:
        if self._lingering or self._is_rejecting_body():
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        if self._in_head and self._is_answering():
            self._hold_back(data)
            return
        fed, cut = 0, self._next_boundary(data)
        while cut < len(data):
            self._feed(data[fed:cut])
            fed = cut
            if self._is_ending():
                return
            if self._in_head and self._is_answering():
                self._hold_back(data[fed:])
                return
            cut = self._next_boundary(data, fed)
        self._feed(data[fed:])
        if not self._in_head and self._body_timer is None and not self._is_ending():
            self._start_body_timer()

    def _next_boundary(self, data: bytes | bytearray, fed: int = 0) -> int:
        """The index in `data`, behind the `fed` bytes, at which the request may be complete and parsing must pause."""
        if self._in_head:
            end = data.find(b"\r\n\r\n", fed)
            return len(data) if end < 0 else end + 4
        return fed + (self._body_left if self._body_left > 0 else _CHUNKED_PIECE_BYTES)

    def _feed(self, data: bytes) -> None:
        in_head, body_bytes = self._in_head, self._body_bytes
        if in_head:
            if self._head_bytes == 0:
                self._head_began_s = self.loop.time()
                self._start_header_timer()
                if b"\r\nupgrade:" in data.lower() and data.endswith(b"\r\n\r\n"):
                    data = _UPGRADE.sub(b"\r\n" + _NO_UPGRADE + b":", data)
            # Raw bytes are counted, too: the parser never reports a header line that does not end.
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing is upgraded here: the bytes behind it are the next request.
            rest = data[upgrade.args[0] :]
            if rest:
                self._hold_back(rest)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if self._is_ending():
            return
        if self._in_head:
            if self._head_bytes > self.max_header_bytes:
                self._refuse(_too_large(self.max_header_bytes))
            return
        self._count_body()
        if not in_head and self._body_left < 0:
            self._count_framing(len(data), body_bytes)

    def _count_framing(self, count: int, body_bytes: int) -> None:
        """Limit trailers, chunk extensions and chunk sizes, which have no limit of their own."""
        self._unframed_bytes = count if self._body_bytes > body_bytes else self._unframed_bytes + count
        if self._unframed_bytes > self.max_header_bytes:
            limit = self.max_header_bytes
            self.refuse_body(HeadersTooLarge(f"The body's trailers or chunk framing are larger than {limit} bytes."))

    def _hold_back(self, data: bytes) -> None:
        self._held_bytes += data
        if len(self._held_bytes) > MAX_HELD_BYTES:
            # Also if reading is paused already: an application that reads its body resumes it.
            self._reading_stopped = True
            self.transport.pause_reading()

    def _parse_held(self) -> None:
        """Parse the held bytes up to the next request."""
        held = self._held_bytes
        while held and not self._is_ending() and not (self._in_head and self._is_answering()):
            self._unset_keepalive_if_required()
            cut = self._next_boundary(held)
            piece = bytes(memoryview(held)[:cut])
            del held[:cut]
            self._feed(piece)
        if not self._in_head and self._body_timer is None and not self._is_ending():
            self._start_body_timer()
        if self._reading_stopped and len(held) <= MAX_HELD_BYTES // 2 and not self._is_ending():
            self._reading_stopped = False
            self.transport.resume_reading()

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._content_length = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer. It is dropped, because as a header it would not have been checked by proxies.
            return
        self._header_bytes += len(name) + len(value) + 4
        if len(self.headers) >= self.max_headers:
            self._refuse(HeadersTooLarge(f"The request has more than {self.max_headers} headers."))
            # The parser takes any exception of a callback for an invalid request; the response has been sent already.
            raise ValueError("too many headers")
        name = name.lower()
        if name == _NO_UPGRADE:
            return
        if name == b"content-length":
            self._content_length = int(value)
        elif name == b"transfer-encoding":
            self._content_length = -1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if self._header_bytes + len(self.url) > self.max_header_bytes:
            self._refuse(_too_large(self.max_header_bytes))
            raise ValueError("headers too large")
        if b"#" in self.url:
            # A fragment is not meant for servers. A proxy that takes it for a part of the path would apply rules for
            # another path than this server.
            self._refuse(ClientError("The request's target has a fragment."))
            raise ValueError("fragment in the target")
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[ARRIVAL] = self._head_began_s or self.loop.time()
        scope[DIRECT_SINK] = self
        super().on_headers_complete()
        cycle = self.cycle
        cycle.transport = self._response_transport  # type: ignore[assignment]
        if self._active_cycle is None or self._active_cycle.response_complete:
            self._active_cycle = cycle
        self.body_error = None
        self._body_left = self._content_length
        self._keep_alive = cycle.keep_alive and not self._is_last()
        # A response that starts before the end of the body closes the connection: the rest of the body would otherwise
        # have to be read, or be taken for the next request.
        cycle.keep_alive = self._keep_alive and not self._body_left

    def _is_last(self) -> bool:
        """Whether the connection should take no further request."""
        return False

    def on_body(self, body: bytes) -> None:
        # Called once per chunk, and chunks may have one byte each; all other work is done once per parsed piece.
        self._body_bytes += len(body)
        self.cycle.body += body

    def _count_body(self) -> None:
        """Account for the part of the body that has arrived since the last call."""
        count = self._body_bytes - self._counted_bytes
        if not count:
            return
        if self._body_left > 0:
            self._body_left -= count
        before, self._counted_bytes = self._counted_bytes, self._body_bytes
        cycle = self.cycle
        if cycle.response_complete or self.body_error is not None:
            cycle.body = bytearray()
            return
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()
        if self._body_bytes > UNCOUNTED_BYTES:
            self._budget.add(self, count if before > UNCOUNTED_BYTES else self._body_bytes)

    def on_message_complete(self) -> None:
        self._count_body()
        super().on_message_complete()
        cycle = self.cycle
        if self._keep_alive and not cycle.response_started:
            cycle.keep_alive = True
        self._in_head = True
        self._head_bytes = 0
        self._head_began_s = 0.0
        self._body_left = self._body_bytes = self._counted_bytes = self._unframed_bytes = 0
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def on_response_complete(self) -> None:
        self._budget.release(self)
        if self._lingering:
            self.pipeline.clear()
            self.server_state.total_requests += 1
            return
        if self.pipeline:
            self._active_cycle = self.pipeline[-1][0]
        super().on_response_complete()
        if self._held_bytes and not self._is_answering():
            self._parse_held()
        if self._in_head and self._head_bytes and not self._is_answering() and self._timer is None:
            # A part of the next request came during the last response; its time starts now.
            self._start_header_timer()

    def send_400_response(self, msg: str) -> None:
        if self._is_ending():
            return
        error = ClientError("This is not a valid HTTP request.")
        if self._body_left and self._active_cycle is self.cycle and not self.cycle.response_started:
            self.refuse_body(error)
        else:
            self._refuse(error)

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()

    # Time and memory of a body.

    @property
    def is_arriving(self) -> bool:
        """Whether the current request's body is incomplete and still wanted."""
        return not self._in_head and self.body_error is None

    def refuse_over_budget(self) -> None:
        """Refuse the arriving body, because the bodies of all connections together are too large."""
        message = "The bodies of the requests that are arriving are too large together (server.max_total_body_bytes)."
        self.refuse_body(Overloaded(message, retry_after_s=1, reason="bodies"))

    def refuse_body(self, error: SluiceError) -> None:
        """Have the request whose body is arriving answered with `error`. The rest of its body is dropped."""
        cycle = self.cycle
        if cycle.response_complete:
            self._linger()
            return
        self.body_error = error
        cycle.body = bytearray()
        self._linger_bytes = LINGER_BYTES
        if self._body_timer is not None:
            self._body_timer.cancel()
        self._body_timer = self.loop.call_later(_ANSWER_WITHIN_S, self._abort_unanswered)
        # Wakes the application that waits for the body. The rest of the body is read and dropped.
        cycle.message_event.set()
        self.flow.resume_reading()

    def _start_body_timer(self) -> None:
        """Start to check that the rest of the body arrives in time."""
        now_s = self.loop.time()
        self._body_deadline = BodyDeadline(
            now_s, timeout_s=self.body_timeout_s, min_bytes_per_s=self.min_body_bytes_per_s
        )
        self._body_timer = self.loop.call_at(self._body_deadline.next_check_s, self._check_body)

    def _check_body(self) -> None:
        self._body_timer = None
        if self._in_head or self._is_ending() or self.cycle.response_complete:
            return
        # A timer may be a fraction of a millisecond early. If it is late, this process has not read the input in time.
        now_s = max(self.loop.time(), self._body_deadline.next_check_s)
        paused = self.flow.read_paused or now_s - self._body_deadline.next_check_s > LATE_S
        error = self._body_deadline.check(now_s, self._body_bytes, paused=paused)
        if error is not None:
            self.refuse_body(error)
        else:
            self._body_timer = self.loop.call_at(self._body_deadline.next_check_s, self._check_body)

    def _abort_unanswered(self) -> None:
        self._body_timer = None
        if self._is_answering():
            self.transport.abort()

    def _release_body(self) -> None:
        self._budget.release(self)
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None


def body_budget(server_state: Any) -> BodyBudget | None:
    """The budget that all connections of a server share; None before the first connection."""
    return _budgets.get(server_state)


def _too_large(limit: int) -> HeadersTooLarge:
    return HeadersTooLarge(f"The request line and headers are larger than {limit} bytes.")
