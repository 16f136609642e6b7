"""What comes in on a connection: limits on its size and its time, so that none costs more than one request.

The parser gets no byte of a request while the one before it is being answered, so nothing piles up behind an answer.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any
from weakref import WeakKeyDictionary

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from gateway.domain import ARRIVAL, DIRECT_SINK
from gateway.errors import ClientError, HeadersTooLarge, Overloaded, SluiceError
from gateway.transports.http.body_budget import UNCOUNTED_BYTES, BodyBudget, BodyDeadline
from gateway.transports.http.lingering_close import LATE_S, LINGER_BYTES, LingeringConnection

# A client may send so much ahead of the answers; beyond it the socket is not read until they have caught up.
MAX_HELD_BYTES = 64 * 2**10
# A chunked body is parsed in pieces of this size, since only the parser knows where it ends: so many bytes behind it
# may be taken for requests before the first is answered.
_CHUNKED_PIECE_BYTES = 1024
# An application that has been told that its request's body will not come gets so long to answer.
_ANSWER_WITHIN_S = 5.0

# The parser takes the body of a request that offers another protocol for the beginning of that protocol, and Java's
# client offers one with its first request, whatever that is. Nothing is upgraded here, so it does not get to know.
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_NO_UPGRADE = b"upgrade-refused"

_budgets: WeakKeyDictionary[Any, BodyBudget] = WeakKeyDictionary()
"""By server."""


class LimitedConnection(LingeringConnection):
    """uvicorn's HTTP protocol with bounds on what a client may send, and how slowly."""

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
        """Bytes of the body that are to come; -1: chunks."""
        self._body_bytes = 0
        self._counted_bytes = 0
        self._unframed_bytes = 0
        """Bytes since the last that belonged to a body."""
        self._body_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._budget = body_budget(self.server_state) or _budgets.setdefault(
            self.server_state, BodyBudget(self.max_total_body_bytes)
        )
        # A connection that says nothing at all is held to the same deadline.
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._release_body()
        super().connection_lost(exc)

    # Bytes.

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
        """Where in `data`, of which the parser has been fed so much, it must stop, because the request may be complete
        there."""
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
            # Counted raw as well as by header: a header line that never ends is never reported as one.
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing is upgraded here: what follows is the next request.
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
        """Trailers, extensions and sizes of chunks have no end of their own."""
        self._unframed_bytes = count if self._body_bytes > body_bytes else self._unframed_bytes + count
        if self._unframed_bytes > self.max_header_bytes:
            limit = self.max_header_bytes
            self.refuse_body(HeadersTooLarge(f"The body's trailers or chunk framing are larger than {limit} bytes."))

    def _hold_back(self, data: bytes) -> None:
        self._held_bytes += data
        if len(self._held_bytes) > MAX_HELD_BYTES:
            # Also where it is so already: an application that reads its body has the socket read again.
            self._reading_stopped = True
            self.transport.pause_reading()

    def _parse_held(self) -> None:
        """Parse what has been held back, up to the next request."""
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

    # The parser.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._content_length = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer. Nobody reads them here, and as headers they would say what no proxy has looked at.
            return
        self._header_bytes += len(name) + len(value) + 4
        if len(self.headers) >= self.max_headers:
            self._refuse(HeadersTooLarge(f"The request has more than {self.max_headers} headers."))
            # The parser treats any exception of a callback as a broken request; it has been answered already.
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
            # A fragment is the client's own business, and a proxy that takes it for part of the path has other rules
            # for what is left of it here.
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
        # An answer that comes before the end of the body says that it is the last: the rest would otherwise have to
        # be read, or be taken for the next request.
        cycle.keep_alive = self._keep_alive and not self._body_left

    def _is_last(self) -> bool:
        """Whether the connection should be used for no further request."""
        return False

    def on_body(self, body: bytes) -> None:
        # Once per chunk, and chunks can have one byte each; what else there is to do is done once per piece parsed.
        self._body_bytes += len(body)
        self.cycle.body += body

    def _count_body(self) -> None:
        """Look at what has come of a body since the last time."""
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
            # Part of the next request came while the last one was being answered; its time runs from now.
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

    # A body's time.

    @property
    def is_arriving(self) -> bool:
        """Whether more of the present request's body is to come."""
        return not self._in_head and self.body_error is None

    def refuse_over_budget(self) -> None:
        """End the request whose body is arriving, because all of them are too many bytes."""
        message = "The bodies of the requests that are arriving are too large together (server.max_total_body_bytes)."
        self.refuse_body(Overloaded(message, retry_after_s=1, reason="bodies"))

    def refuse_body(self, error: SluiceError) -> None:
        """Have the request whose body is arriving answered with `error`; no more of it is read."""
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
        # Wakes who waits for the body, and lets the rest come, to be dropped.
        cycle.message_event.set()
        self.flow.resume_reading()

    def _start_body_timer(self) -> None:
        """The rest of a body has to come in time."""
        now_s = self.loop.time()
        self._body_deadline = BodyDeadline(
            now_s, timeout_s=self.body_timeout_s, min_bytes_per_s=self.min_body_bytes_per_s
        )
        self._body_timer = self.loop.call_at(self._body_deadline.next_check_s, self._check_body)

    def _check_body(self) -> None:
        self._body_timer = None
        if self._in_head or self._is_ending() or self.cycle.response_complete:
            return
        # A timer may be a fraction of a millisecond early. If it is late, it is we who have not looked at what came.
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
    """What all connections of a server hold of bodies; None before the first."""
    return _budgets.get(server_state)


def _too_large(limit: int) -> HeadersTooLarge:
    return HeadersTooLarge(f"The request line and headers are larger than {limit} bytes.")


__all__ = ["MAX_HELD_BYTES", "LimitedConnection", "body_budget"]
