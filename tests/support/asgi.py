"""A client in the shape of an ASGI server: scripted `receive`, recorded `send`, and it can leave at any moment.

It behaves as uvicorn does where that matters: what is sent to a client that has gone vanishes without an error, a
finished response is followed by `http.disconnect`, and `send` waits while the client does not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote

import orjson

from gateway import asgi
from gateway.asgi import DIRECT_SINK
from gateway.streams.cancel_scope import ClientDisconnected


async def read_body(receive: Any) -> bytes:
    """The whole request body. Raises ClientDisconnected, for the middleware around it."""
    body = await asgi.read_body(receive)
    if body is None:
        raise ClientDisconnected
    return body


class Client:
    """One request and its response."""

    def __init__(
        self,
        app: Any,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Sequence[bytes] = b"",
        unfinished: bool = False,
        direct_sink: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """A body is JSON unless `headers` name its type. In several parts it comes in several messages; `unfinished`:
        its last part never comes; `direct_sink`: the scope holds the connection; `extra` is added to the scope."""
        self.messages: list[MutableMapping[str, Any]] = []
        self.gone = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self.written = 0
        """The number of writes past ASGI."""
        self.broken = False
        self.body_error: Any = None
        self._parts = [body] if isinstance(body, bytes) else list(body)
        self._unfinished = unfinished
        path, _, query = path.partition("?")
        lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        if body and not any(name == b"content-type" for name, _ in lines):
            lines.append((b"content-type", b"application/json"))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": lines,
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
            **({DIRECT_SINK: self} if direct_sink else {}),
            **(extra or {}),
        }
        self.task = asyncio.get_running_loop().create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._parts and not self.gone.is_set():
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts) or self._unfinished}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self.gone.is_set():
            return
        assert not self.complete, "sent after the end of the response"
        assert (message["type"] == "http.response.start") == (not self.messages), "start comes first and once"
        self.messages.append(message)
        if self.complete:
            self.gone.set()
        await self.reading.wait()

    # `DirectSink`.

    def is_writable(self) -> bool:
        return self.started and not self.complete and self.reading.is_set() and not self.gone.is_set()

    def write(self, data: bytes) -> None:
        assert self.is_writable()
        self.written += 1
        self.messages.append({"type": "http.response.body", "body": data, "more_body": True})

    def flush(self) -> None:
        """Nothing to do: `write` has recorded the data."""

    def abort(self) -> None:
        self.broken = True

    def leave(self) -> None:
        """Close the connection."""
        self.gone.set()
        self.reading.set()

    async def finish(self) -> Client:
        """Wait for the app to be done with the request."""
        await self.task
        return self

    @property
    def started(self) -> bool:
        return bool(self.messages)

    @property
    def complete(self) -> bool:
        """Whether the response reached its end; a server breaks the connection otherwise."""
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def bodies(self) -> list[bytes]:
        """The body, message by message."""
        return [message.get("body", b"") for message in self.messages[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)

    def json(self) -> Any:
        return orjson.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The OpenAI error of the response."""
        body: dict[str, Any] = self.json()
        return dict(body["error"])

    def events(self) -> list[Any]:
        """The SSE events of the body: JSON documents, and the string `[DONE]`."""
        return [document for _, document in self.numbered()]

    def numbered(self) -> list[tuple[int | None, Any]]:
        """The events with their ids, None for those that have none."""
        return read_events(self.body)

    @property
    def comments(self) -> int:
        """The number of keep-alive comments."""
        return self.body.count(b": keep-alive\n")


def read_events(body: bytes) -> list[tuple[int | None, Any]]:
    """The events of a body that ends with a whole one, by the rules of the WHATWG as far as we use them."""
    events: list[tuple[int | None, Any]] = []
    number: int | None = None
    data: bytes | None = None
    for line in body.split(b"\n"):
        if line.startswith(b": "):
            continue
        if not line:
            if data is not None:
                events.append((number, "[DONE]" if data == b"[DONE]" else orjson.loads(data)))
            number = data = None
        elif line.startswith(b"id: "):
            number = int(line.removeprefix(b"id: "))
        else:
            assert line.startswith(b"data: "), line
            assert data is None, "an event of ours has one line of data"
            data = line.removeprefix(b"data: ")
    assert number is None, "the last event is not complete"
    assert data is None, "the last event is not complete"
    return events


__all__ = ["Client", "read_body", "read_events"]
