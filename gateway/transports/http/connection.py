"""One HTTP connection of uvicorn's with what it lacks: direct writes past ASGI after a response has begun, a check
whether the peer is still there, and a maximum age. `request_limits` and `lingering_close` are its lower layers.
"""

from __future__ import annotations

import asyncio
import random
import socket
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

from gateway.domain import ARRIVAL, DIRECT_SINK
from gateway.transports.http import socket_options
from gateway.transports.http.request_limits import LimitedConnection

# A peer that owes an acknowledgement and has sent none for so long is gone; with a second between two looks, and two
# looks to be sure, it is found within 21 s. Counted from its last sign of life and not from when it was first asked
# again, because what is sent to an idle peer in between (a keep-alive comment) puts the kernel's own probes off.
UNACKED_LIMIT_S = 18.0
# A finished answer whose last kilobytes nobody reads holds its connection for so long.
UNREAD_LIMIT_S = 30
# In the middle of an answer that has no watch of its own, so much later than one that has.
STALL_SLACK_S = 5.0
# A client that sends request after request and reads no answer is ended so soon.
FLOOD_LIMIT_S = 3
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
        self._due: list[HttpConnection] = []

    def add(self, one: HttpConnection) -> None:
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


class HttpConnection(LimitedConnection):
    """uvicorn's HTTP protocol with what it lacks: bounds on what comes in, error bodies that OpenAI clients understand,
    the time of a request's first byte, and a connection's greatest age."""

    # nginx and envoy close idle upstream connections after 60 s; the side that closes later loses no request.
    idle_timeout_s = 75.0
    max_age_s = 300.0
    stall_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = self.idle_timeout_s  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        spread = random.uniform(0.9, 1.1)  # noqa: S311 - so that those who came together do not all go together
        self._retires_s = self.loop.time() + self.max_age_s * spread if self.max_age_s else inf
        self._owes_ack = False
        self._stuck_s = 0
        self._unsent_before = 0
        self._piece = b""
        self._together = _together.get(self.server_state) or _together.setdefault(
            self.server_state, Together(self.loop)
        )
        self._socket = transport.get_extra_info("socket")
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            socket_options.set_options(self._socket)
        transport.set_write_buffer_limits(high=socket_options.HIGH_WATER_BYTES)

    def _is_last(self) -> bool:
        # Its answer says `Connection: close`. A load balancer of connections, as Kubernetes' Services are, would leave
        # a client for ever with the replica that it met first, however many have come since.
        return self.loop.time() >= self._retires_s

    # What apps find in the scope under `LINE`.

    def is_writable(self) -> bool:
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
            socket_options.set_reset_on_close(self._socket)
        self.transport.abort()

    def check_peer(self) -> None:
        """Break a connection whose peer has vanished while it is being answered, or does not read what it is sent; to
        be called every second."""
        unsent = self.unsent_bytes
        answering = self._is_answering()
        stuck = unsent >= self._unsent_before > 0 and (self.flow.write_paused or not answering)
        self._stuck_s, self._unsent_before = self._stuck_s + 1 if stuck else 0, unsent
        if self._stuck_s >= self._stuck_limit_s(answering):
            self.abort()
            return
        if self._reading_stopped and socket_options.has_peer_closed(self._socket):
            # Where nothing is read, the end of what the client sends is not seen either.
            self.abort()
            return
        if answering and self.cycle.response_started:
            # What was to be made of the request's body has been made.
            self._budget.release(self)
        owed, self._owes_ack = self._owes_ack, answering and socket_options.unacked_s(self._socket) >= UNACKED_LIMIT_S
        # Probes of a live peer may be far apart, and one may be on its way at this moment.
        if owed and self._owes_ack:
            self.abort()

    def _stuck_limit_s(self, answering: bool) -> float:
        if self._reading_stopped:
            return FLOOD_LIMIT_S
        # A stream ends such a client itself, and says so; this is for answers that have no watch of their own.
        return self.stall_timeout_s + STALL_SLACK_S if answering else UNREAD_LIMIT_S

    @property
    def unsent_bytes(self) -> int:
        """What waits in our own buffer."""
        return self.transport.get_write_buffer_size() + len(self._piece)


__all__ = ["ARRIVAL", "DIRECT_SINK", "HttpConnection"]
