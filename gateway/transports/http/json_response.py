"""A stream as one JSON document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.asgi import send_whole
from gateway.errors import InternalError
from gateway.streams.reader import StreamReader
from gateway.transports.http.disconnect import DisconnectWatcher
from gateway.transports.http.middleware import Exchange

# Requests the engine's load in a header of a whole answer (ORCA); a request header of `vllm serve`.
_LOAD_FORMAT = "endpoint-load-metrics-format"


async def send_json(
    exchange: Exchange,
    watcher: DisconnectWatcher,
    send: Any,
    reader: StreamReader,
    load_report: Callable[[str], str | None],
) -> None:
    """Wait for the end of the stream, and send its last document. Raises the error with which it ended."""
    payload, ended = b"", None
    while ended is None:
        batch = await reader.next_batch()
        if batch is not None:
            payload = batch.documents[-1] if batch.documents else payload
            ended = batch.ended
    stats = exchange.stats
    stats.end(ended.cause)
    if ended.error is not None:
        raise ended.error
    if not payload:
        raise InternalError("The server failed to answer this request.")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(payload)),
        (b"x-stream-id", (stats.id or "").encode("ascii")),
    ]
    if (kind := stats.caller.headers.get(_LOAD_FORMAT)) and (report := load_report(kind)) is not None:
        headers.append((b"endpoint-load-metrics", report.encode("ascii", "replace")))
    watcher.disarm()
    await send_whole(send, 200, headers, payload)
