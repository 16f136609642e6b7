"""A stream as Server-Sent Events."""

from __future__ import annotations

from typing import Any

from gateway.domain import Cause
from gateway.protocols import sse
from gateway.streamlog.base import Batch
from gateway.streams.reader import DirectSink, StreamReader
from gateway.streams.stream import Stream
from gateway.transports.common.delivery import Delivery, DeliveryTimers
from gateway.transports.http.disconnect import DisconnectWatcher
from gateway.transports.http.middleware import Exchange

Headers = list[tuple[bytes, bytes]]


class SseResponse:
    """One response; a `Connection` of its delivery. No other code writes to the socket meanwhile."""

    def __init__(
        self,
        exchange: Exchange,
        stream: Stream,
        headers: Headers,
        send: Any,
        watcher: DisconnectWatcher,
        sink: DirectSink | None,
    ) -> None:
        self._exchange = exchange
        self._stream = stream
        self._headers = headers
        self._send = send
        self._watcher = watcher
        self._sink = sink
        self._frame = stream.protocol.framing(is_numbered=stream.is_resumable)
        self._is_first = exchange.stats is stream.stats
        self._has_begun = False

    async def run(self, reader: StreamReader, timers: DeliveryTimers) -> None:
        """Send everything up to the end of the stream. Raises the error of a stream that ended before anything was
        sent, which can still be an HTTP status."""
        delivery = Delivery(
            self._stream,
            reader,
            timers,
            is_first=self._is_first,
            sink=self._sink,
            frame=self._frame,
            on_stalled=lambda: self._watcher.disconnect(Cause.CLIENT_STALLED),
        )
        await delivery.run(self)

    async def write_keepalive(self) -> None:
        ping = self._stream.protocol.ping
        await self._write(
            sse.KEEP_ALIVE if ping is None else self._stream.protocol.framing(is_numbered=False)([ping], 0)
        )

    async def write_events(self, batch: Batch) -> None:
        body = self._frame(batch.documents, batch.first)
        if batch.ended is None:
            await self._write(body)
            return
        error = batch.ended.error
        # A client that resumes has seen a 200 of this stream before.
        if error is not None and not self._has_begun and not self._stream.has_output and self._is_first:
            raise error
        self._watcher.disarm()
        await self._write(body, more=False)
        if not self._stream.is_resumable:
            self._exchange.stats.end(batch.ended.cause)

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        if self._has_begun:
            if self._sink is not None:
                self._sink.flush()
        else:
            self._has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
