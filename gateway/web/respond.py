"""From a stream to the socket.

One task per request: it waits for news of the stream, takes all of it and sends it at once. A second, sleeping task
listens for the client to leave; uvicorn silently drops what is sent to a client that has gone, so nothing else would
tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Self

import orjson

from gateway.clock import Clock
from gateway.errors import InternalError
from gateway.model import Chunk, Endpoint, Facts
from gateway.streamlog.base import Ended
from gateway.streams.registry import Registry, Stream
from gateway.web.guard import EXCHANGE, ClientGone, Exchange
from gateway.wire import sse
from gateway.wire.openai import Encoder


class Presence:
    """A scope that is left with ClientGone as soon as the client has gone.

    The request's body must have been read before. `excuse` ends the watch: after the last byte of a response, a
    client may leave as it likes.
    """

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._excused = False
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.get_running_loop().create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._excused = True
        self._watch.cancel()
        if self._gone and isinstance(error, asyncio.CancelledError) and self._task.uncancel() == 0:
            raise ClientGone from None

    def excuse(self) -> None:
        """Nothing more will be sent that the client could miss."""
        self._excused = True

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._excused:
            self._gone = True
            self._task.cancel()


class Completions:
    """The ASGI app of one of our two endpoints."""

    def __init__(self, endpoint: Endpoint, registry: Registry, clock: Clock, facts: Facts) -> None:
        self._endpoint = endpoint
        self._registry = registry
        self._clock = clock
        self._facts = facts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        exchange: Exchange = scope[EXCHANGE]
        exchange.tally.endpoint = self._endpoint.value
        exchange.tally.works = True
        body = await read_body(receive)
        async with Presence(receive) as presence:
            async with self._registry.open(self._endpoint, body, exchange.tally) as stream:
                if stream.streaming:
                    await self._stream(stream, exchange, presence, send)
                else:
                    await self._whole(stream, exchange, presence, send)

    async def _stream(self, stream: Stream, exchange: Exchange, presence: Presence, send: Any) -> None:
        batch = await stream.follower.take()
        if batch.ended is not None and batch.ended.error is not None and not batch.pieces:
            # Nothing has been sent: the failure can still be a real HTTP status.
            raise batch.ended.error
        headers = [*sse.HEADERS, (b"x-stream-id", _ascii(exchange.tally.id))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        encoder = None if stream.frame is None else Encoder(stream.frame)
        first = True
        while True:
            if encoder is not None:
                documents = encoder.encode(batch.pieces)
            else:
                documents = [piece.payload for piece in batch.pieces if isinstance(piece, Chunk)]
            body = b"".join([sse.event(document) for document in documents])
            if batch.ended is not None:
                body += _ending(batch.ended)
                presence.excuse()
                exchange.tally.cause = batch.ended.cause
                await send({"type": "http.response.body", "body": body, "more_body": False})
            else:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if first and exchange.tally.first_token_s is not None:
                first = False
                self._facts.first_token(self._clock.now() - exchange.caller.arrival_s)
            if batch.ended is not None:
                return
            batch = await stream.follower.take()

    async def _whole(self, stream: Stream, exchange: Exchange, presence: Presence, send: Any) -> None:
        payload = b""
        while True:
            batch = await stream.follower.take()
            for piece in batch.pieces:
                assert isinstance(piece, Chunk)
                payload = piece.payload
            if batch.ended is not None:
                break
        exchange.tally.cause = batch.ended.cause
        if batch.ended.error is not None:
            raise batch.ended.error
        if not payload:
            raise InternalError("The server failed to answer this request.")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(payload)),
            (b"x-stream-id", _ascii(exchange.tally.id)),
        ]
        presence.excuse()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": payload})


def _ending(ended: Ended) -> bytes:
    """How a stream says that it is over: the finish chunk has been sent, or an error event is; then `[DONE]`."""
    if ended.error is None:
        return sse.DONE
    return sse.event(orjson.dumps(ended.error.body())) + sse.DONE


def _ascii(stream_id: str | None) -> bytes:
    return (stream_id or "").encode("ascii")


async def read_body(receive: Any) -> bytes:
    """The whole request body. Raises ClientGone if the client leaves before it is complete."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


__all__ = ["Completions", "Presence", "read_body"]
