"""One connection: limits on what comes before a request, a way past ASGI for what comes after its answer has begun, a
look at whether the peer is still there, and an age at which it ends.
"""

from __future__ import annotations

import asyncio
import random
import socket
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway import sockets
from gateway.errors import ClientError, HeadersTooLarge, HeadersTooSlow, SluiceError
from gateway.model import ARRIVAL, LINE

# A peer that owes an acknowledgement and has sent none for so long is gone; with a second between two looks, and two
# looks to be sure, it is found within 21 s. Counted from its last sign of life and not from when it was first asked
# again, because what is sent to an idle peer in between (a keep-alive comment) puts the kernel's own probes off.
PEER_GONE_AFTER_S = 18.0
# A finished answer whose last kilobytes nobody reads holds its connection for so long.
UNREAD_AFTER_S = 30
# So many connections' pieces leave together. The first of them waits for the making of the others, a fraction of a
# millisecond.
TOGETHER = 64


class Together:
    """Lets what one step of the engine adds to many streams leave back to back.

    Otherwise the making of the next piece comes between two writes, and who reads on this machine (a proxy beside us)
    has had the time to fall asleep again: waking somebody on another CPU is the most expensive part of a write.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[Protocol] = []

    def add(self, one: Protocol) -> None:
        """`one` has something to flush; it will be in this turn of the loop."""
        self._due.append(one)
        if len(self._due) == 1:
            self._loop.call_soon(self._flush)
        elif len(self._due) >= TOGETHER:
            self._flush()

    def _flush(self) -> None:
        due, self._due = self._due, []
        for one in due:
            one.flush()


_together: WeakKeyDictionary[Any, Together] = WeakKeyDictionary()
"""By server."""


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with what it lacks: a limit on the size of headers and a deadline for them, error
    bodies that OpenAI clients understand, the time of a request's first byte, and a connection's greatest age."""

    max_header_bytes = 32 * 2**10
    header_timeout_s = 10.0
    # nginx and envoy close idle upstream connections after 60 s; the side that closes later loses no request.
    idle_timeout_s = 75.0
    max_age_s = 300.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = self.idle_timeout_s  # type: ignore[assignment]
        self.url = b""
        self._in_head = True
        self._head_bytes = 0
        self._head_began_s = 0.0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        spread = random.uniform(0.9, 1.1)  # noqa: S311 - so that those who came together do not all go together
        self._last_from_s = self.loop.time() + self.max_age_s * spread if self.max_age_s else inf
        self._owes = False
        self._unread_s = 0
        self._piece = b""
        self._together = _together.get(self.server_state) or _together.setdefault(
            self.server_state, Together(self.loop)
        )
        self._socket = transport.get_extra_info("socket")
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            sockets.tune(self._socket)
        transport.set_write_buffer_limits(high=sockets.HIGH_WATER_BYTES)
        # A connection that says nothing at all is held to the same deadline.
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._head_bytes == 0:
                self._head_began_s = self.loop.time()
                self._arm()
            # Counted raw as well as by header: a header line that never ends is never reported as one.
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.max_header_bytes and not self.transport.is_closing():
            self._refuse(_too_large(self.max_header_bytes))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        if self._header_bytes + len(self.url) > self.max_header_bytes:
            self._refuse(_too_large(self.max_header_bytes))
            # The parser treats any exception of a callback as a broken request; the connection is closing already.
            raise ValueError("headers too large")
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[ARRIVAL] = self._head_began_s or self.loop.time()
        scope[LINE] = self
        super().on_headers_complete()
        if self.loop.time() >= self._last_from_s:
            # Its answer says `Connection: close`. A load balancer of connections, as Kubernetes' Services are, would
            # leave a client for ever with the replica that it met first, however many have come since.
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0
        self._head_began_s = 0.0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head and self._head_bytes and not self._answering():
            # Part of the next request came while the last one was being answered; its time runs from now.
            self._arm()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self._refuse(ClientError("This is not a valid HTTP request."))

    # What apps find in the scope under `LINE`.

    def open(self) -> bool:
        """Whether the body of a response that has been started can be added to, and the client keeps up."""
        cycle = self.cycle
        return (
            not self.flow.write_paused
            and cycle is not None
            and not cycle.response_complete
            and cycle.chunked_encoding is True
            and not self.transport.is_closing()
        )

    def write(self, piece: bytes) -> None:
        """Add a piece to the body of the response, in this turn of the loop; only while it is open."""
        framed = b"%x\r\n%b\r\n" % (len(piece), piece)
        if self._piece:
            self._piece += framed
        else:
            self._piece = framed
            self._together.add(self)

    def flush(self) -> None:
        """Have what has been added leave now."""
        piece, self._piece = self._piece, b""
        if piece and not self.transport.is_closing():
            self.transport.write(piece)

    def abort(self) -> None:
        """End the connection at once, whatever is still in its buffers."""
        self._piece = b""
        if not self.transport.is_closing():
            sockets.forget(self._socket)
        self.transport.abort()

    def look_after_peer(self) -> None:
        """Break a connection whose peer has vanished while it is being answered, or does not read what is left of an
        answer; to be called every second."""
        self._unread_s = self._unread_s + 1 if self.unsent_bytes and not self._answering() else 0
        if self._unread_s >= UNREAD_AFTER_S:
            self.abort()
        owed, self._owes = self._owes, self._answering() and sockets.unanswered_s(self._socket) >= PEER_GONE_AFTER_S
        # Probes of a live peer may be far apart, and one may be on its way at this moment.
        if owed and self._owes:
            self.abort()

    @property
    def unsent_bytes(self) -> int:
        """What waits in our own buffer."""
        return self.transport.get_write_buffer_size() + len(self._piece)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        self._disarm()
        if self._answering():
            # A client may send ahead while it is being answered, and take its time.
            return
        self._deadline = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            return
        if self._head_bytes == 0 or not self.url:
            # Silence, or a stray line break after the last request.
            self.transport.close()
        else:
            self._refuse(HeadersTooSlow(f"The request's headers were not complete after {self.header_timeout_s:g} s."))

    def _refuse(self, error: SluiceError) -> None:
        """Answer before there is a request, then close. In the middle of an answer, which this would become a part of,
        only close."""
        self._disarm()
        if self._answering():
            self.transport.close()
            return
        body = orjson.dumps(error.body())
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()


def _too_large(limit: int) -> HeadersTooLarge:
    return HeadersTooLarge(f"The request line and headers are larger than {limit} bytes.")


__all__ = ["Protocol"]
