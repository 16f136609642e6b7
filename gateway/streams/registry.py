"""All requests of this process that have passed, or wait at, the gate: finds them by id, cancels them, drains."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from gateway.clock import Clock
from gateway.domain import Caller, RequestStats
from gateway.engine.base import EngineSource
from gateway.errors import Cancelled, Draining, Expired, NotFound
from gateway.streams.cancel_scope import CancelScope
from gateway.streams.limits import Limits
from gateway.streams.retention import Retention
from gateway.streams.stream import Stream

# When the engine has aborted its part, a request that the engine's own app answers ends by itself within milliseconds.
_UNWINDS_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to a status or cancel request. `events` is the number of the newest event."""

    id: str
    status: str
    resumable: bool
    events: int
    prompt_tokens: int
    completion_tokens: int


class Registry:
    """Live streams, finished ones that can still be read, and requests that the engine's own app answers."""

    def __init__(self, engines: EngineSource, limits: Limits, clock: Clock) -> None:
        self.is_draining = False
        self._engines = engines
        self._retention_s = limits.retention_s
        self._live: dict[str, Stream] = {}
        self.retention = Retention(limits, clock, self._live)
        self._app_requests: dict[CancelScope, RequestStats] = {}
        self._idle: asyncio.Future[None] | None = None

    @property
    def active(self) -> int:
        """Requests that have not ended."""
        return len(self._live) + len(self._app_requests)

    @property
    def kept_bytes(self) -> int:
        """The size of the events of resumable streams, finished and live."""
        return self.retention.size_bytes

    def owners(self) -> Counter[str]:
        """How many requests that have not ended each API key has, by its name."""
        stats = chain((stream.stats for stream in self._live.values()), self._app_requests.values())
        return Counter(one.caller.owner for one in stats if one.caller.owner is not None)

    def add(self, stream: Stream) -> None:
        """A stream has begun."""
        self._live[stream.id] = stream
        if stream.is_resumable:
            self.retention.rebalance()

    def on_ended(self, stream_id: str) -> None:
        """A stream has ended."""
        stream = self._live.pop(stream_id)
        stream.on_ended()
        if stream.is_resumable:
            self.retention.finish(stream)
        self._check_idle()

    @contextmanager
    def app_request(self, scope: CancelScope, stats: RequestStats) -> Iterator[None]:
        """A request that the engine's own app answers is in flight; `scope` ends it."""
        self._app_requests[scope] = stats
        try:
            yield
        finally:
            del self._app_requests[scope]
            self._check_idle()

    # By id.

    def find(self, stream_id: str, caller: Caller) -> Stream:
        """The caller's stream of that id, live or finished.

        Raises NotFound if there never was one, or if it has another owner, which must look the same; Expired if it is
        kept no longer.
        """
        finished = self.retention.finished
        stream = self._live.get(stream_id) or finished.get(stream_id)
        if stream is not None and stream.owner == caller.owner:
            return stream
        if stream is None and finished.was_dropped(stream_id, caller.owner):
            raise Expired(f"The stream {stream_id!r} is kept no longer.", param="id")
        raise NotFound(f"There is no request with the id {stream_id!r}.", param="id")

    def owner_of(self, stream_id: str) -> str | None:
        """The owner of a stream, also of one that is kept no longer; None if there is no owner or no such stream."""
        finished = self.retention.finished
        stream = self._live.get(stream_id) or finished.get(stream_id)
        return finished.owner_of_dropped(stream_id) if stream is None else stream.owner

    def readable_until_s(self, stream: Stream) -> float:
        """The last moment at which that stream can be kept."""
        return stream.ends_by_s + self._retention_s

    def status(self, stream_id: str, caller: Caller) -> Status:
        """The state of the caller's request. Raises as `find`."""
        return _status(self.find(stream_id, caller))

    def cancel(self, request_id: str, caller: Caller) -> Status:
        """Cancel a live request, and return its state; a finished one that is kept stays as it is. Raises as `find`."""
        error = Cancelled("The request was cancelled by its id.")
        try:
            stream = self.find(request_id, caller)
        except NotFound:
            stats = self._engines.engine.cancel(request_id, caller.owner)
            if stats is None:
                raise
            # Its answer may wait for a client that does not read.
            loop = asyncio.get_running_loop()
            for scope in [scope for scope, one in self._app_requests.items() if one is stats]:
                loop.call_later(_UNWINDS_WITHIN_S, scope.end, error)
            return Status(request_id, "cancelled", False, 0, stats.prompt_tokens, stats.completion_tokens)
        stream.cancel(error)
        return _status(stream)

    # All of them.

    def on_engine_lost(self) -> None:
        """The engine has died; streams that run may go on with the next."""
        for stream in self._live.values():
            stream.writer.on_engine_lost()

    def on_engine_recovered(self) -> None:
        """They go on."""
        for stream in self._live.values():
            stream.writer.on_engine_recovered()

    async def drain(self, timeout_s: float) -> None:
        """Admit nothing new, let the requests in flight finish for that long, then end the rest."""
        self.is_draining = True
        if self.active:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._idle,), timeout=timeout_s)
            self.end_all()

    def end_all(self) -> None:
        """End all requests, now."""
        self.is_draining = True
        for stream in list(self._live.values()):
            stream.cancel(Draining("The server is stopping.", retry_after_s=1))
        for scope in list(self._app_requests):
            scope.end(Draining("The server is stopping.", retry_after_s=1))

    def check_draining(self) -> None:
        """Raises Draining if nothing new is admitted."""
        if self.is_draining:
            raise Draining("The server is stopping and takes no new requests.", retry_after_s=1)

    def _check_idle(self) -> None:
        if self._idle is not None and not self.active and not self._idle.done():
            self._idle.set_result(None)


def _status(stream: Stream) -> Status:
    stats, events = stream.stats, stream.last_event
    return Status(stream.id, stream.status, stream.is_resumable, events, stats.prompt_tokens, stats.completion_tokens)
