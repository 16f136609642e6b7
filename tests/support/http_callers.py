"""Applications with a sync and an async httpx client and one interface, so that a test covers both."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from gateway.client import ResumingTransport
from tests.support.time import VirtualClock

# Each httpx transport would load the certificates anew, which takes longer than most tests.
_TLS = ssl.create_default_context()
STREAMING: dict[str, Any] = {"model": "canned", "stream": True}


class Waits:
    """Time that passes only in the transport's pauses, which are noted; `then` happens in each."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.pauses_s: list[float] = []
        self.then: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.clock.advance(seconds)
        self.then()

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)

    def transport(
        self, inner: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None, **options: Any
    ) -> ResumingTransport:
        """A transport in this time, without randomness: each pause is as long as it may be."""
        usual: dict[str, Any] = {"jitter": lambda: 1.0, "clock": self.clock}
        usual.update(sleep=self.sleep, async_sleep=self.async_sleep)
        return ResumingTransport(inner, **{**usual, **options})


@dataclass
class Received:
    """The bytes that an application got, then perhaps an error."""

    body: bytes = b""
    error: httpx.HTTPError | None = None
    response: httpx.Response | None = None
    notes: list[str] = field(default_factory=list)


class SyncCaller:
    """An application with `httpx.Client`."""

    def __init__(self, transport: ResumingTransport, timeout_s: float = 5.0) -> None:
        self._client = httpx.Client(transport=transport, timeout=timeout_s)

    @staticmethod
    def inner() -> httpx.HTTPTransport:
        return httpx.HTTPTransport(verify=_TLS)

    def __enter__(self) -> SyncCaller:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(
        self, url: str, *, headers: Mapping[str, str] | None = None, stop_after: int | None = None, **body: Any
    ) -> Received:
        """Post and read; leave after `stop_after` chunks."""
        received = Received()
        options: Any = body or {"json": STREAMING}
        try:
            with self._client.stream("POST", url, headers=headers, **options) as response:
                received.response = response
                for count, chunk in enumerate(response.iter_raw(), 1):
                    received.body += chunk
                    if count == stop_after:
                        break
        except httpx.HTTPError as error:
            received.error = error
            received.notes = getattr(error, "__notes__", [])
        return received


class AsyncCaller:
    """An application with `httpx.AsyncClient`, in an event loop of its own."""

    def __init__(self, transport: ResumingTransport, timeout_s: float = 5.0) -> None:
        self._runner = asyncio.Runner(debug=True)
        self._client = httpx.AsyncClient(transport=transport, timeout=timeout_s)

    @staticmethod
    def inner() -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(verify=_TLS)

    def __enter__(self) -> AsyncCaller:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    def ask(
        self, url: str, *, headers: Mapping[str, str] | None = None, stop_after: int | None = None, **body: Any
    ) -> Received:
        """Post and read; leave after `stop_after` chunks."""
        return self._runner.run(self._ask(url, headers, stop_after, body or {"json": STREAMING}))

    async def _ask(self, url: str, headers: Any, stop_after: int | None, options: Any) -> Received:
        received = Received()
        try:
            async with self._client.stream("POST", url, headers=headers, **options) as response:
                received.response = response
                count = 0
                async for chunk in response.aiter_raw():
                    received.body += chunk
                    count += 1
                    if count == stop_after:
                        break
        except httpx.HTTPError as error:
            received.error = error
            received.notes = getattr(error, "__notes__", [])
        return received


Caller = type[SyncCaller] | type[AsyncCaller]


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    kind: Caller = request.param
    return kind


@pytest.fixture
def waits() -> Waits:
    return Waits()


__all__ = ["STREAMING", "AsyncCaller", "Caller", "Received", "SyncCaller", "Waits", "caller", "waits"]
