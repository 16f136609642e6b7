"""One HTTP connection of uvicorn's with what it lacks: direct writes past ASGI after a response has begun, a check
whether the peer is still there, and a maximum age. `request_limits` and `lingering_close` are its lower layers.
"""

from __future__ import annotations

import asyncio
import random
import socket
from math import inf
from typing import Any

from gateway.transports.http import socket_options
from gateway.transports.http.request_limits import LimitedConnection
from gateway.transports.http.write_coalescer import WriteCoalescer

# A peer that owes an acknowledgement and has sent none for this long has vanished. With one check a second, and another
# for confirmation, it is found within 21 s. The time counts from the peer's last acknowledgement and not from the first
# retransmission, because bytes sent to an idle peer in between (a keep-alive comment) postpone the kernel's probes.
UNACKED_LIMIT_S = 18.0
# A finished response whose last kilobytes are not read keeps its connection for this long.
UNREAD_LIMIT_S = 30
# Added to the stall timeout of streams, for responses that do not check for a stall themselves.
STALL_SLACK_S = 5.0
# A client that pipelines requests and reads no response is disconnected after this time.
FLOOD_LIMIT_S = 3


class HttpConnection(LimitedConnection):
    """The protocol of an accepted connection, and the `DirectSink` of its running response."""

    # nginx and envoy close idle upstream connections after 60 s; the side that closes later loses no request.
    idle_timeout_s = 75.0
    max_age_s = 300.0
    stall_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = self.idle_timeout_s  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        spread = random.uniform(0.9, 1.1)  # noqa: S311 - so that simultaneous connections do not all end together
        self._retires_s = self.loop.time() + self.max_age_s * spread if self.max_age_s else inf
        self._owes_ack = False
        self._stuck_s = 0
        self._unsent_before = 0
        self._piece = b""
        self._writes = WriteCoalescer.of(self.server_state, self.loop)
        self._socket = transport.get_extra_info("socket")
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            socket_options.set_options(self._socket)
        transport.set_write_buffer_limits(high=socket_options.HIGH_WATER_BYTES)

    def _is_last(self) -> bool:
        # The response then has `Connection: close`. A load balancer of connections, such as a Kubernetes Service, would
        # otherwise leave a client with its first replica for ever, even when replicas have been added.
        return self.loop.time() >= self._retires_s

    # `DirectSink`, which apps find in their scope.

    def is_writable(self) -> bool:
        """Whether a response has started, can be continued, and its client keeps up."""
        cycle = self.cycle
        return (
            not self.flow.write_paused
            and cycle is not None
            and not cycle.response_complete
            and cycle.chunked_encoding is True
            and not self.transport.is_closing()
        )

    def write(self, piece: bytes) -> None:
        """Add a piece to the response's body, flushed in this turn of the loop. Only while `is_writable`."""
        framed = b"%x\r\n%b\r\n" % (len(piece), piece)
        if self._piece:
            self._piece += framed
        else:
            self._piece = framed
            self._writes.add(self)

    def flush(self) -> None:
        """Pass the added pieces to the transport now."""
        piece, self._piece = self._piece, b""
        if piece and not self.transport.is_closing():
            self.transport.write(piece)

    def abort(self) -> None:
        """End the connection at once and drop its buffers."""
        self._piece = b""
        if not self.transport.is_closing():
            socket_options.set_reset_on_close(self._socket)
        self.transport.abort()

    def check_peer(self) -> None:
        """Abort a connection whose peer has vanished during a response, or does not read. To be called every second."""
        unsent = self.unsent_bytes
        answering = self._is_answering()
        stuck = unsent >= self._unsent_before > 0 and (self.flow.write_paused or not answering)
        self._stuck_s, self._unsent_before = self._stuck_s + 1 if stuck else 0, unsent
        if self._stuck_s >= self._stuck_limit_s(answering):
            self.abort()
            return
        if self._reading_stopped and socket_options.has_peer_closed(self._socket):
            # While the socket is not read, the transport does not notice the end of the input.
            self.abort()
            return
        if answering and self.cycle.response_started:
            # The request's body has been processed.
            self._budget.release(self)
        owed, self._owes_ack = self._owes_ack, answering and socket_options.unacked_s(self._socket) >= UNACKED_LIMIT_S
        # An acknowledgement may be on its way at this moment, and probes of a live peer may be far apart.
        if owed and self._owes_ack:
            self.abort()

    def _stuck_limit_s(self, answering: bool) -> float:
        if self._reading_stopped:
            return FLOOD_LIMIT_S
        # Streams end such a client themselves, with an error; this limit is for all other responses.
        return self.stall_timeout_s + STALL_SLACK_S if answering else UNREAD_LIMIT_S

    @property
    def unsent_bytes(self) -> int:
        """Bytes in this process's buffers."""
        return self.transport.get_write_buffer_size() + len(self._piece)
