"""ASGI, where more than one package speaks it: the type of an app, our keys in a scope, and a request's body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ARRIVAL = "sluice.arrival_s"
"""Scope key: when a request's first byte came, in monotonic seconds."""
DIRECT_SINK = "sluice.direct_sink"
"""Scope key: the connection itself; see `gateway.streams.reader.DirectSink`. Its `body_error` is the SluiceError for
which no more of the request's body will come, or None."""


async def read_body(receive: Receive) -> bytes | None:
    """The whole request body; None if the client disconnects before it is complete. Its size is bounded where it enters
    the process."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def send_whole(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes = b"") -> None:
    """Send a complete response."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def wait_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
