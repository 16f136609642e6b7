"""From a stream to the socket.

One task per connection: it waits for news of the stream, takes all of it and sends it at once, so nothing else ever
writes to that socket. A second, sleeping task listens for the client to leave; uvicorn silently drops what is sent to
a client that has gone, so nothing else would tell.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs

from gateway import asgi
from gateway.clock import Clock
from gateway.domain import DIRECT_SINK, Caller, Cause, Endpoint, Instrumentation
from gateway.errors import DeadlineExceeded, InternalError, NotFound, SluiceError
from gateway.protocols import sse
from gateway.streamlog.base import Batch
from gateway.streams.cancel_scope import CancelScope, ClientDisconnected
from gateway.streams.reader import StreamReader
from gateway.streams.registry import Registry
from gateway.streams.stream import Stream
from gateway.transports.common import request_options
from gateway.transports.common.timers import DeadlineTimer
from gateway.transports.http.disconnect import DisconnectWatcher
from gateway.transports.http.middleware import EXCHANGE, Exchange
from gateway.transports.http.stream_tokens import StreamTokens

# Asks for the engine's load in the header of a whole answer (ORCA), as `vllm serve` takes it.
_LOAD_FORMAT = "endpoint-load-metrics-format"


class DirectSink(Protocol):
    """What the server offers past ASGI. What is written to it would else pass four coroutines for every token."""

    body_error: SluiceError | None
    """Why no more of the request's body will come."""

    def is_writable(self) -> bool:
        """Whether a response has been started that can be added to, and the client keeps up."""

    def write(self, data: bytes) -> None:
        """Add a piece to the response's body, in this turn of the loop; only while it is open."""

    def flush(self) -> None:
        """Have what has been written leave before anything that is sent otherwise."""

    def abort(self) -> None:
        """Break the connection at once, whatever is still in its buffers."""


class _NoDirectSink:
    """Where the server offers none."""

    body_error: SluiceError | None = None

    def is_writable(self) -> bool:
        return False

    def write(self, piece: bytes) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        pass

    def abort(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ConnectionTimeouts:
    """How a connection is kept and when it is given up; seconds of silence, and seconds that one send may take."""

    keepalive_s: float
    stall_timeout_s: float


class Responder:
    """What all connections share."""

    def __init__(
        self,
        registry: Registry,
        pace: ConnectionTimeouts,
        clock: Clock,
        instrumentation: Instrumentation,
        tokens: StreamTokens,
    ) -> None:
        self.registry = registry
        self.tokens = tokens
        self.pace = pace
        self.clock = clock
        self.instrumentation = instrumentation
        self.pulse = DeadlineTimer(clock)

    def headers(self, stream: Stream) -> list[tuple[bytes, bytes]]:
        """The headers of a stream's events."""
        headers = [*sse.HEADERS, (b"x-stream-id", stream.id.encode("ascii"))]
        if stream.grace_s is not None:
            headers.append((request_options.RESUMABLE.encode(), b"%g" % stream.grace_s))
            owner, until_s = stream.writer.stats.caller.owner, self.registry.readable_until_s(stream)
            headers.append((b"x-stream-token", self.tokens.make(stream.id, owner, until_s).encode("ascii")))
        return headers

    async def serve(
        self, scope: MutableMapping[str, Any], receive: Any, send: Any, stream: Stream, cursor: int
    ) -> None:
        """Answer with `stream` from event number `cursor` on. Raises Left if the client goes first."""
        exchange: Exchange = scope[EXCHANGE]
        line: DirectSink = scope.get(DIRECT_SINK) or _NoDirectSink()
        try:
            # The reader outside: it has to see why the client's presence ended.
            with stream.read(cursor) as reader:
                async with DisconnectWatcher(receive) as presence:
                    if stream.streaming:
                        await SseResponse(self, exchange, presence, send, line, stream, reader).run()
                    else:
                        await send_json(exchange, presence, send, reader, self.registry.load_report)
        except ClientDisconnected as left:
            if left.cause is Cause.CLIENT_STALLED:
                # Closing would wait for the client to read what is in the buffers.
                line.abort()
            raise


class Completions:
    """The ASGI app of one of our two endpoints."""

    def __init__(self, endpoint: Endpoint, responder: Responder) -> None:
        self._endpoint = endpoint
        self._responder = responder

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        exchange: Exchange = scope[EXCHANGE]
        stats = exchange.stats
        stats.endpoint = self._endpoint.value
        stats.uses_engine = True
        wished = request_options.read(stats.caller.headers)
        body = await _read_in_time(receive, wished.timeout_s, stats.caller, self._responder.clock)
        stream = await self._responder.registry.open_any(
            self._endpoint, body, stats, wished, DisconnectWatcher(receive)
        )
        await self._responder.serve(scope, receive, send, stream, 0)


class Resume:
    """`GET /v1/streams/{id}`: come back to a resumable stream, or join it."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any, stream_id: str) -> None:
        exchange: Exchange = scope[EXCHANGE]
        instrumentation, caller = self._responder.instrumentation, exchange.caller
        try:
            stream = self._responder.registry.find(stream_id, caller)
            if not stream.is_resumable:
                raise NotFound(f"The request {stream_id!r} is not a resumable stream.", param="id")
            query = parse_qs(scope["query_string"].decode("latin-1"))
            cursor = sse.cursor(caller.headers.get("last-event-id"), query.get("starting_after", [None])[-1])
            if exchange.method == "HEAD":
                # Reading would make an end of a grace, or of the stream.
                stream.check_cursor(cursor)
                await send({"type": "http.response.start", "status": 200, "headers": self._responder.headers(stream)})
                await send({"type": "http.response.body", "body": b""})
                return
            if stream.is_fully_read(cursor):
                instrumentation.resumed("read_out")
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            await self._responder.serve(scope, receive, send, stream, cursor)
        except ClientDisconnected:
            instrumentation.resumed("ok")
            raise
        except Exception as error:
            instrumentation.resumed(getattr(error, "code", "internal_error"))
            raise
        instrumentation.resumed("ok")


class SseResponse:
    """Writes one stream to one connection; the follower's outlet while that keeps up."""

    def __init__(
        self,
        responder: Responder,
        exchange: Exchange,
        presence: DisconnectWatcher,
        send: Any,
        line: DirectSink,
        stream: Stream,
        reader: StreamReader,
    ) -> None:
        self._line = line
        self._clock = responder.clock
        self._responder = responder
        self._exchange = exchange
        self._presence = presence
        self._send = send
        self._stream = stream
        self._reader = reader
        self._started = False
        # Whether headers and first token are out, and nothing but more of the same is to be sent.
        self._settled = False
        self._is_first = exchange.stats is stream.writer.stats
        self._quiet_since_s = responder.clock.now()
        self._sending_since_s: float | None = None

    async def run(self) -> None:
        """Send everything up to the end of the stream."""
        pulse, pace = self._responder.pulse, self._responder.pace
        number = pulse.add(self._check, self._quiet_since_s + min(pace.keepalive_s, pace.stall_timeout_s))
        try:
            while not await self._turn(await self._reader.next_batch(self)):
                pass
        finally:
            pulse.remove(number)

    # `Outlet`.

    def is_writable(self) -> bool:
        return self._settled and self._line.is_writable()

    def write(self, first: int, documents: list[bytes]) -> None:
        self._line.write(self._framed(first, documents))
        self._quiet_since_s = self._clock.now()

    def _framed(self, first: int, documents: list[bytes]) -> bytes:
        return sse.numbered(documents, first) if self._stream.is_resumable else sse.events(documents)

    async def _turn(self, batch: Batch | None) -> bool:
        """Send one batch, or a sign of life; whether that was the end."""
        if batch is None:
            await self._write(sse.KEEP_ALIVE)
            return False
        body = self._framed(batch.first, batch.documents)
        if batch.ended is None:
            await self._write(body)
            return False
        error = batch.ended.error
        if error is not None and not self._started and self._stream.writer.silent and self._is_first:
            # Nothing has been sent: the failure can still be a real HTTP status. Not so to somebody who comes back:
            # what has been seen of this stream began with a 200.
            raise error
        self._presence.disarm()
        await self._write(body, more=False)
        if not self._stream.is_resumable:
            self._exchange.stats.end(batch.ended.cause)
        return True

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        first = not self._started
        if not first:
            self._line.flush()
        self._sending_since_s = self._clock.now()
        if first:
            self._started = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": self._responder.headers(self._stream)}
            )
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending_since_s, self._quiet_since_s = None, self._clock.now()
        stats = self._stream.writer.stats
        if stats.first_token_s is not None:
            self._settled = True
            if self._is_first and not stats.first_token_sent:
                stats.first_token_sent = True
                self._responder.instrumentation.first_token(self._quiet_since_s - stats.caller.arrival_s)

    def _check(self, now_s: float) -> float:
        """What the pulse asks: is a sign of life due, or is this client stuck?"""
        pace = self._responder.pace
        if self._sending_since_s is not None:
            stuck_s = self._sending_since_s + pace.stall_timeout_s
            if now_s < stuck_s:
                return stuck_s
            self._presence.disconnect(Cause.CLIENT_STALLED)
            return math.inf
        # Compared as the sum that is answered below: a difference can be rounded to the other side of the limit, and
        # the pulse would ask again at the same moment, for ever.
        if now_s >= self._quiet_since_s + pace.keepalive_s:
            self._reader.request_keepalive()
            return now_s + min(pace.keepalive_s, pace.stall_timeout_s)
        # A send that begins right now must be found when its time is up.
        return min(self._quiet_since_s + pace.keepalive_s, now_s + pace.stall_timeout_s)


async def send_json(
    exchange: Exchange,
    presence: DisconnectWatcher,
    send: Any,
    reader: StreamReader,
    load_report: Callable[[str], str | None],
) -> None:
    """One JSON document."""
    payload = b""
    while True:
        batch = await reader.next_batch()
        if batch is None:
            continue
        if batch.documents:
            payload = batch.documents[-1]
        if batch.ended is not None:
            break
    stats = exchange.stats
    stats.end(batch.ended.cause)
    if batch.ended.error is not None:
        raise batch.ended.error
    if not payload:
        raise InternalError("The server failed to answer this request.")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(payload)),
        (b"x-stream-id", (stats.id or "").encode("ascii")),
    ]
    if (kind := stats.caller.headers.get(_LOAD_FORMAT)) and (report := load_report(kind)) is not None:
        headers.append((b"endpoint-load-metrics", report.encode("ascii", "replace")))
    presence.disarm()
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": payload})


async def _read_in_time(receive: Any, timeout_s: float | None, caller: Caller, clock: Clock) -> bytes:
    """The body, if it is there before the client's own deadline. Raises DeadlineExceeded, and as `read_body`."""
    if timeout_s is None:
        return await read_body(receive)
    left_s = caller.arrival_s + timeout_s - clock.now()
    with CancelScope() as cancel_scope:
        error = DeadlineExceeded(f"The request's deadline of {timeout_s:g} s has passed while its body arrived.")
        timer = asyncio.get_running_loop().call_later(max(0.0, left_s), cancel_scope.end, error)
        try:
            return await read_body(receive)
        finally:
            timer.cancel()


async def read_body(receive: Any) -> bytes:
    """The whole request body. Raises ClientDisconnected if the client disconnects before its end."""
    body = await asgi.read_body(receive)
    if body is None:
        raise ClientDisconnected
    return body


__all__ = [
    "DIRECT_SINK",
    "Completions",
    "ConnectionTimeouts",
    "DirectSink",
    "Responder",
    "Resume",
    "read_body",
]
