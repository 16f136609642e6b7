"""An app inside the middleware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.transports.common.api_keys import ApiKeys
from gateway.transports.http.access import Access
from gateway.transports.http.middleware import Middleware
from gateway.transports.http.stream_tokens import StreamTokens
from tests.support.asgi import Client, read_body
from tests.support.harness import ANY_SITE
from tests.support.instrumentation import Recorder
from tests.support.time import clock


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An app that reads its body and answers."""
    await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Request-Id", b"theirs")]})
    await send({"type": "http.response.body", "body": b"hello"})


class Wrapped:
    """An app inside the middleware."""

    def __init__(
        self,
        app: Any = hello,
        *,
        keys_file: Path | None = None,
        protect_metrics: bool = False,
        max_body_bytes: int = 1000,
    ) -> None:
        self.instrumentation = Recorder()
        self.closing = False
        self.guard = Middleware(
            app,
            access=Access(
                keys=None if keys_file is None else ApiKeys(keys_file),
                sites=ANY_SITE,
                protect_metrics=protect_metrics,
                operator_endpoints=False,
                tokens=StreamTokens(clock()),
                owner_of=lambda _: None,
            ),
            max_body_bytes=max_body_bytes,
            is_closing=lambda: self.closing,
            clock=clock(),
            instrumentation=self.instrumentation,
        )

    async def get(self, path: str = "/v1/models", **options: Any) -> Client:
        return await Client(self.guard, "GET", path, **options).finish()
