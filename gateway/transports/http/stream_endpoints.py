"""The ASGI apps whose responses are streams of ours: a request that starts one, and one that resumes it.

There is one task per connection: it waits for events of the stream, takes all of them and sends them at once. A second,
sleeping task waits for the client to disconnect: uvicorn silently drops what is sent to a client that has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from gateway.asgi import DIRECT_SINK, Receive, read_body, send_whole
from gateway.clock import Clock
from gateway.domain import Caller, Cause
from gateway.errors import DeadlineExceeded, NotFound
from gateway.protocols import sse
from gateway.protocols.base import StreamProtocol
from gateway.streams.cancel_scope import CancelScope, ClientDisconnected
from gateway.streams.reader import DirectSink
from gateway.streams.registry import Registry
from gateway.streams.starter import StreamStarter
from gateway.streams.stream import NoSuchEvent, Stream
from gateway.transports.common import request_options
from gateway.transports.common.delivery import DeliveryTimers
from gateway.transports.http.disconnect import DisconnectWatcher
from gateway.transports.http.json_response import send_json
from gateway.transports.http.middleware import EXCHANGE, Exchange
from gateway.transports.http.sse_response import Headers, SseResponse
from gateway.transports.http.stream_tokens import StreamTokens

Scope = MutableMapping[str, Any]


@dataclass(slots=True, eq=False)
class StreamResponder:
    """Answers requests with streams. `load_report` gives the engine's load in one of ORCA's formats."""

    registry: Registry
    timers: DeliveryTimers
    tokens: StreamTokens
    load_report: Callable[[str], str | None]

    def headers(self, stream: Stream) -> Headers:
        """The headers of a stream's events."""
        headers = [*sse.HEADERS, (b"x-stream-id", stream.id.encode("ascii"))]
        if stream.grace_s is not None:
            headers.append((request_options.RESUMABLE.encode(), b"%g" % stream.grace_s))
            token = self.tokens.make(stream.id, stream.owner, self.registry.readable_until_s(stream))
            headers.append((b"x-stream-token", token.encode("ascii")))
        return headers

    async def respond(self, scope: Scope, receive: Receive, send: Any, stream: Stream, cursor: int) -> None:
        """Send `stream` from event number `cursor` on. Raises ClientDisconnected."""
        exchange: Exchange = scope[EXCHANGE]
        sink: DirectSink | None = scope.get(DIRECT_SINK)
        try:
            # Nested deeply: the reader is outside, because it has to see why the scope of the watcher ended.
            with stream.read(cursor) as reader:
                async with DisconnectWatcher(receive) as watcher:
                    if stream.is_streaming:
                        response = SseResponse(exchange, stream, self.headers(stream), send, watcher, sink)
                        await response.run(reader, self.timers)
                    else:
                        await send_json(exchange, watcher, send, reader, self.load_report)
        except ClientDisconnected as disconnected:
            if disconnected.cause is Cause.CLIENT_STALLED and sink is not None:
                # Closing would wait for the client to read the buffers.
                sink.abort()
            raise


@dataclass(slots=True, eq=False)
class StreamEndpoint:
    """`POST` to an endpoint whose streams are ours."""

    path: str
    protocol: StreamProtocol
    starter: StreamStarter
    responder: StreamResponder
    clock: Clock

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        stats = scope[EXCHANGE].stats
        stats.endpoint = self.path
        stats.uses_engine = True
        options = request_options.read(stats.caller.headers)
        body = await _read_in_time(receive, options.timeout_s, stats.caller, self.clock)
        stream = await self.starter.start(self.protocol, body, stats, options, DisconnectWatcher(receive))
        await self.responder.respond(scope, receive, send, stream, 0)


@dataclass(slots=True, eq=False)
class ResumeEndpoint:
    """`GET /v1/streams/{id}`: resume a resumable stream, or join it."""

    responder: StreamResponder

    async def __call__(self, scope: Scope, receive: Receive, send: Any, stream_id: str) -> None:
        exchange: Exchange = scope[EXCHANGE]
        resumed = exchange.stats.instrumentation.resumed
        try:
            result = await self._resume(scope, receive, send, stream_id, exchange)
        except ClientDisconnected:
            resumed("ok")
            raise
        except Exception as error:
            resumed(getattr(error, "code", "internal_error"))
            raise
        if result is not None:
            resumed(result)

    async def _resume(
        self, scope: Scope, receive: Receive, send: Any, stream_id: str, exchange: Exchange
    ) -> str | None:
        """The result to report; None for a request that reads nothing."""
        stream = self.responder.registry.find(stream_id, exchange.caller)
        if not stream.is_resumable:
            raise NotFound(f"The request {stream_id!r} is not a resumable stream.", param="id")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        cursor = sse.cursor(exchange.caller.headers.get("last-event-id"), query.get("starting_after", [None])[-1])
        try:
            if exchange.method == "HEAD":
                # A read would end a grace, or the stream.
                stream.check_cursor(cursor)
                await send_whole(send, 200, self.responder.headers(stream))
                return None
            if stream.is_fully_read(cursor):
                await send_whole(send, 204, [])
                return "read_out"
            await self.responder.respond(scope, receive, send, stream, cursor)
        except NoSuchEvent as error:
            error.param = "Last-Event-ID"
            raise
        return "ok"


async def _read_in_time(receive: Receive, timeout_s: float | None, caller: Caller, clock: Clock) -> bytes:
    """The body. Raises DeadlineExceeded if it is not complete before the client's own deadline, and ClientDisconnected
    if the client leaves before."""
    timer = None
    with CancelScope() as scope:
        if timeout_s is not None:
            error = DeadlineExceeded(f"The request's deadline of {timeout_s:g} s has passed while its body arrived.")
            left_s = caller.left_s(timeout_s, clock.now())
            timer = asyncio.get_running_loop().call_later(left_s, scope.end, error)
        try:
            body = await read_body(receive)
        finally:
            if timer is not None:
                timer.cancel()
    if body is None:
        raise ClientDisconnected
    return body
