"""Apps for tests of one HTTP connection, and requests for them."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.asgi import DIRECT_SINK
from tests.support.asgi import read_body
from tests.support.time import settle
from tests.support.transport import Connection

GET = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"

LONG = b"GET /x HTTP/1.1\r\nx: " + b"a" * 1000 + b"\r\n\r\n"
CHUNKED = b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


def post(length: int, *lines: bytes) -> bytes:
    return b"\r\n".join((b"POST /x HTTP/1.1", b"content-length: %d" % length, *lines, b"", b""))


class App:
    """Answers `begin end`; with `slow`, waits for `go_on` in between."""

    def __init__(self, *, slow: bool = False) -> None:
        self.scopes: list[Any] = []
        self.bodies: list[bytes] = []
        self.go_on = asyncio.Event()
        if not slow:
            self.go_on.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.bodies.append(await read_body(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin ", "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"end"})


async def halfway(**limits: Any) -> tuple[App, Connection]:
    """An app in the middle of its response, and its connection."""
    app = App(slow=True)
    connection = Connection(app, **limits)
    connection.feed(GET)
    await settle()
    return app, connection


class Early:
    """Answers without reading the body."""

    def __init__(self, status: int = 404) -> None:
        self.status = status
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})


class Refusing:
    """Reads the body as the middleware does: the connection's error for the body becomes the response."""

    def __init__(self) -> None:
        self.errors: list[Any] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def asked() -> Any:
            message = await receive()
            error = scope[DIRECT_SINK].body_error
            if error is not None and message.get("more_body", False):
                raise error
            return message

        try:
            self.bodies.append(await read_body(asked))
            status = 200
        except Exception as error:
            self.errors.append(error)
            status = getattr(error, "status", 499)
        if status == 499:
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


__all__ = ["CHUNKED", "GET", "LONG", "App", "Early", "Refusing", "halfway", "post"]
