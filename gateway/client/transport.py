"""The transport: sends the requests of `resumption`, and reads a stream from one connection after another."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import httpx

from gateway.client.resumption import Policy, Resumption, is_resumable, wants_stream, with_stream_headers
from gateway.client.sse_events import EventsLost
from gateway.clock import Clock, SystemClock


class ResumingTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """An httpx transport, sync and async, that resumes streamed completions. Use one transport for one client.

    `inner` sends the requests (proxies, TLS, HTTP/2, connection limits); by default an `httpx.HTTPTransport()` or
    `httpx.AsyncHTTPTransport()`, created on first use. `grace_s`: the seconds for which the server is asked to keep a
    stream without its reader; a longer outage than it grants ends the stream with the original error. Attempts are
    spread at random over `backoff_s` seconds, then twice that, and so on up to `max_backoff_s`.
    `clock`, `sleep`, `async_sleep` and `jitter` (uniform in [0, 1)) are for tests.

    Reading a response raises the same errors as httpx (`httpx.TransportError`), only later and less often.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
        *,
        grace_s: float = 60.0,
        backoff_s: float = 0.25,
        max_backoff_s: float = 5.0,
        clock: Clock | None = None,
        sleep: Callable[[float], object] | None = None,
        async_sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not (math.isfinite(grace_s) and grace_s > 0):
            raise ValueError(f"grace_s must be a positive number of seconds, not {grace_s}")
        self.is_closed = False
        # Waiting for an event that is never set sleeps; `time` may not be imported outside `clock`.
        self.sleep = sleep or threading.Event().wait
        self.async_sleep = async_sleep
        self._policy = Policy(grace_s, backoff_s, max_backoff_s, clock or SystemClock(), jitter)
        self._sync = inner if isinstance(inner, httpx.BaseTransport) else None
        self._async = inner if isinstance(inner, httpx.AsyncBaseTransport) else None
        self._makes_default_inner = inner is None
        self._inner_lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request. The stream of a resumable response survives lost connections."""
        if not wants_stream(request):
            return self._sync_inner().handle_request(request)
        inner = self._sync_inner()
        response = inner.handle_request(with_stream_headers(request, self._policy.grace_s))
        if is_resumable(response):
            response.stream = _SyncStream(self, inner, response, Resumption(request, response, self._policy))
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request. The stream of a resumable response survives lost connections."""
        if not wants_stream(request):
            return await self._async_inner().handle_async_request(request)
        inner = self._async_inner()
        response = await inner.handle_async_request(with_stream_headers(request, self._policy.grace_s))
        if is_resumable(response):
            response.stream = _AsyncStream(self, inner, response, Resumption(request, response, self._policy))
        return response

    def close(self) -> None:
        """Close the inner transport. Open streams are resumed no more."""
        self.is_closed = True
        if self._sync is not None:
            self._sync.close()

    async def aclose(self) -> None:
        """Close the inner transport. Open streams are resumed no more."""
        self.is_closed = True
        if self._async is not None:
            await self._async.aclose()

    def _sync_inner(self) -> httpx.BaseTransport:
        with self._inner_lock:
            if self._sync is None:
                if not self._makes_default_inner:
                    raise TypeError("the inner transport is async; a sync client needs a sync one")
                self._sync = httpx.HTTPTransport()
            return self._sync

    def _async_inner(self) -> httpx.AsyncBaseTransport:
        with self._inner_lock:
            if self._async is None:
                if not self._makes_default_inner:
                    raise TypeError("the inner transport is sync; an async client needs an async one")
                self._async = httpx.AsyncHTTPTransport()
            return self._async


class _ResumedStream:
    """A response body over one or more connections. `inner` and the streams are sync or async, as the subclass is."""

    def __init__(self, owner: ResumingTransport, inner: Any, response: httpx.Response, resumption: Resumption) -> None:
        self._owner = owner
        self._inner = inner
        self._response_stream: Any = response.stream
        self._resumption = resumption
        self._is_closed = False

    def _check_open(self) -> None:
        if self._is_closed or self._owner.is_closed:
            self._resumption.raise_outage("closed")


class _SyncStream(_ResumedStream, httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        events = self._resumption.events
        while True:
            broken: httpx.TransportError | None = None
            try:
                for chunk in self._response_stream:
                    yield from events.feed(chunk)
            except EventsLost:
                raise
            except httpx.TransportError as error:
                broken = error
            if events.is_done:
                return
            self._response_stream.close()
            self._resumption.on_connection_lost(broken)
            self._resume()

    def _resume(self) -> None:
        while True:
            self._check_open()
            self._owner.sleep(self._resumption.pause_s())
            self._check_open()
            try:
                response = self._inner.handle_request(self._resumption.request())
            except httpx.TransportError:
                continue
            if self._resumption.accept(response):
                # Set before the check: another thread's `close` either closes this stream, or is noticed here.
                self._response_stream = response.stream
                if not self._is_closed:
                    return
            response.close()

    def close(self) -> None:
        self._is_closed = True
        self._response_stream.close()


class _AsyncStream(_ResumedStream, httpx.AsyncByteStream):
    """Cancellation is never caught."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        events = self._resumption.events
        while True:
            broken: httpx.TransportError | None = None
            try:
                async for chunk in self._response_stream:
                    # Nested deeply, because async generators have no `yield from`.
                    for event in events.feed(chunk):
                        yield event
            except EventsLost:
                raise
            except httpx.TransportError as error:
                broken = error
            if events.is_done:
                return
            await self._response_stream.aclose()
            self._resumption.on_connection_lost(broken)
            await self._resume()

    async def _resume(self) -> None:
        while True:
            self._check_open()
            await self._owner.async_sleep(self._resumption.pause_s())
            self._check_open()
            try:
                response = await self._inner.handle_async_request(self._resumption.request())
            except httpx.TransportError:
                continue
            if self._resumption.accept(response):
                self._response_stream = response.stream
                if not self._is_closed:
                    return
            await response.aclose()

    async def aclose(self) -> None:
        self._is_closed = True
        await self._response_stream.aclose()
