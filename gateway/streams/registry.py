"""Who lives here: opens requests, finds them by id, cancels them, drains.

This is the one place that walks a request from its body to a running generation: parse, gate, prepare, submit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

from gateway.admission.gate import AdmissionControl
from gateway.bounded_text import log_defect
from gateway.clock import Clock
from gateway.domain import Caller, Endpoint, Instrumentation, RequestOptions, RequestStats
from gateway.engine.base import CURRENT_STATS, Call, Engine, Route
from gateway.errors import (
    Cancelled,
    Draining,
    Expired,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    SluiceError,
)
from gateway.streamlog.base import StreamLog
from gateway.streams import permissions
from gateway.streams.body_parsing import BEGIN_PER_TURN, Parser
from gateway.streams.cancel_scope import CancelScope
from gateway.streams.limits import Limits
from gateway.streams.retention import FinishedStreams
from gateway.streams.status import Status, status_of
from gateway.streams.stream import Stream, overdue
from gateway.streams.tick_limiter import TickLimiter
from gateway.streams.writer import StreamWriter, Wire

logger = logging.getLogger(__name__)

# Where resumable streams crowd, each keeps its share of the room, but no less than this part of what one may keep.
_SMALLEST_SHARE = 1 / 4
# When the engine has aborted what it did for it, a request that vLLM's app answers ends by itself within milliseconds.
_UNWINDS_WITHIN_S = 1.0


class NoRoute(NotFound):
    """vLLM's own app has nothing at that path."""


class Registry:
    """All requests of this process that have passed, or stand at, the gate."""

    def __init__(
        self,
        *,
        engine: Callable[[], Engine],
        engine_soon: Callable[[], Awaitable[Engine]],
        gate: AdmissionControl,
        log: Callable[[int | None], StreamLog],
        wire: Wire,
        limits: Limits,
        clock: Clock,
        instrumentation: Instrumentation,
        new_id: Callable[[], str],
    ) -> None:
        """`engine` gives the running engine or raises why there is none; `engine_soon` waits where one is on its way.
        `log` makes a fresh log that keeps so many bytes, or nothing; `new_id` an id that nobody can guess."""
        self._engine = engine
        self._engine_soon = engine_soon
        self._gate = gate
        self._log = log
        self._wire = wire
        self._limits = limits
        self._clock = clock
        self._instrumentation = instrumentation
        self._new_id = new_id
        self._live: dict[str, Stream] = {}
        self._mounted: dict[CancelScope, RequestStats] = {}
        self._retention = FinishedStreams(retention_s=limits.retention_s, max_bytes=limits.max_total_bytes, clock=clock)
        self._share = limits.max_bytes
        self._empty: asyncio.Future[None] | None = None
        self._parser = Parser(limits.prepare_timeout_s)
        self._preparing = TickLimiter(BEGIN_PER_TURN)
        self.draining = False

    @property
    def active(self) -> int:
        """Requests that have not ended."""
        return len(self._live) + len(self._mounted)

    def owners(self) -> Counter[str]:
        """How many requests that have not ended each API key has, by its name."""
        tallies = chain((stream.writer.stats for stream in self._live.values()), self._mounted.values())
        return Counter(stats.caller.owner for stats in tallies if stats.caller.owner is not None)

    @property
    def kept_bytes(self) -> int:
        """What the events of resumable streams weigh, finished ones and live ones."""
        return self._retention.size_bytes + self._live_bytes()

    # A request of one of our endpoints.

    def open(self, endpoint: Endpoint, body: bytes, stats: RequestStats, options: RequestOptions) -> Stream:
        """Take a request in and send it on its way; what becomes of it is told to the stream's readers.

        Raises what `Engine.parse` raises, why there is no engine, Draining, and Overloaded if there is no room for
        another resumable stream.
        """
        self._refuse_when_draining()
        return self._begin(endpoint, self._engine().parse(endpoint, body), stats, options)

    async def open_any(
        self,
        endpoint: Endpoint,
        body: bytes,
        stats: RequestStats,
        options: RequestOptions,
        waiting: AbstractAsyncContextManager[object] | None = None,
    ) -> Stream:
        """As `open`, for any number of bodies of any length: what it takes to parse them does not hold up others.
        `waiting` is a scope around what takes long, which may end that. Raises DeadlineExceeded, too."""
        await self._parser.begin()
        if self._parser.is_light(body):
            return self.open(endpoint, body, stats, options)
        self._refuse_when_draining()
        timeout_s = self._timeout(options)
        call = await self._parser.parse(
            partial(self._engine().parse, endpoint, body),
            size=len(body),
            tenant=stats.caller.owner,
            deadline=(timeout_s, self._left(stats.caller, timeout_s)),
            waiting=waiting,
        )
        self._refuse_when_draining()
        return self._begin(endpoint, call, stats, options)

    def _begin(self, endpoint: Endpoint, call: Call, stats: RequestStats, options: RequestOptions) -> Stream:
        # A whole answer has no events to come back for.
        grace_s = None if options.grace_s is None or not call.stream else min(options.grace_s, self._limits.max_grace_s)
        if grace_s is not None and not self._has_room():
            self._instrumentation.rejected("resumable_full")
            raise Overloaded("There is no room for another resumable stream.", retry_after_s=5)
        stats.id = endpoint.id_prefix + self._new_id()
        stats.is_resumable = grace_s is not None
        stream = Stream(
            StreamWriter(
                stats=stats,
                log=self._log(None if grace_s is None else self._limits.max_bytes),
                wire=self._wire,
                streaming=call.stream,
                clock=self._clock,
                on_merged=self._instrumentation.merged,
                on_end=partial(self._ended, stats.id),
            ),
            streaming=call.stream,
            grace_s=grace_s,
        )
        self._live[stats.id] = stream
        if stream.is_resumable:
            self._rebalance()
        stream.start_task = asyncio.get_running_loop().create_task(self._run_until_submitted(call, stream.writer))
        timeout_s = self._timeout(options)
        stream.expire_in(self._left(stats.caller, timeout_s), timeout_s)
        return stream

    async def _run_until_submitted(self, call: Call, writer: StreamWriter) -> None:
        """From the gate to the engine. Every failure ends in the stream."""
        stats = writer.stats
        try:
            await (await self._engine_soon()).check(call, stats)
            began_s = self._clock.now()
            writer.admit(await self._gate.enter(call.slots))
            # The engine that is running now, which need not be the one that was when the wait began.
            engine = await self._engine_soon()
            stats.queued_s = self._clock.now() - began_s
            await self._preparing.enter()
            prepared = await engine.prepare(call, stats)
            writer.start(prepared.template)
            self._instrumentation.overhead(self._clock.now() - stats.caller.arrival_s - stats.queued_s)
            writer.attach(await engine.submit(prepared, writer))
        except SluiceError as error:
            writer.fail(error)
        except Exception as error:
            log_defect(logger, "a request failed with an error that nobody foresaw", error)
            writer.fail(InternalError("The server failed to answer this request."))

    def _ended(self, stream_id: str) -> None:
        stream = self._live.pop(stream_id)
        stream.on_ended()
        if stream.is_resumable:
            self._rebalance()
            self._retention.put(stream, self._live_bytes())
        self._look_if_empty()

    # Those who come back, ask, or cancel.

    def find(self, stream_id: str, caller: Caller) -> Stream:
        """The caller's stream of that id, live or finished.

        Raises NotFound if there never was one, or if it is somebody else's, which must look the same; Expired if it
        is kept no longer.
        """
        stream = self._live.get(stream_id) or self._retention.get(stream_id)
        if stream is not None and stream.writer.stats.caller.owner == caller.owner:
            return stream
        if stream is None and self._retention.was_here(stream_id, caller.owner):
            raise Expired(f"The stream {stream_id!r} is kept no longer.", param="id")
        raise NotFound(f"There is no request with the id {stream_id!r}.", param="id")

    def owner_of(self, stream_id: str) -> str | None:
        """Whose stream that is, or was; None if it is nobody's or if there is none."""
        stream = self._live.get(stream_id) or self._retention.get(stream_id)
        return self._retention.owner_of_gone(stream_id) if stream is None else stream.writer.stats.caller.owner

    def readable_until_s(self, stream: Stream) -> float:
        """The last moment at which that stream can be kept."""
        return stream.ends_by_s + self._limits.retention_s

    def holds(self, request_id: str) -> bool:
        """Whether vLLM's own app runs something under that id here, for whomever."""
        try:
            return self._engine().has_request(request_id)
        except SluiceError:
            return False

    def status(self, stream_id: str, caller: Caller) -> Status:
        """Where the caller's request is. Raises as `find`."""
        return status_of(self.find(stream_id, caller))

    def cancel(self, request_id: str, caller: Caller) -> Status:
        """Cancel a live request; a finished one that is still kept only tells its status. Raises as `find`."""
        try:
            stream = self.find(request_id, caller)
        except NotFound:
            stats = self._engine().cancel(request_id, caller.owner)
            if stats is None:
                raise
            # Its answer may wait for a client who does not read.
            error, loop = Cancelled("The request was cancelled by its id."), asyncio.get_running_loop()
            for cancel_scope in [cancel_scope for cancel_scope, one in self._mounted.items() if one is stats]:
                loop.call_later(_UNWINDS_WITHIN_S, cancel_scope.end, error)
            return Status(request_id, "cancelled", False, 0, stats.prompt_tokens, stats.completion_tokens)
        stream.writer.cancel(Cancelled("The request was cancelled by its id."))
        return status_of(stream)

    # What concerns no request in particular.

    async def model_card(self, name: str) -> dict[str, Any]:
        """What there is to tell of a served model. Raises NotFound, or why there is no engine."""
        card = await self._engine().model_card(name)
        if card is None:
            raise NotFound(f"The model {name!r} does not exist.", param="model")
        return card

    def load_report(self, kind: str) -> str | None:
        """The engine's load, with those in the queue, as the value of an ORCA header of that kind."""
        return self._engine().load_report(kind, self._gate.waiting)

    def is_known(self, path: str) -> bool:
        """Whether vLLM's own app has anything at that path. Raises why there is no engine."""
        return self._engine().route("", path) is not Route.UNKNOWN

    # Requests that vLLM's own app answers.

    @asynccontextmanager
    async def mounted(
        self,
        method: str,
        path: str,
        stats: RequestStats,
        options: RequestOptions,
        waiting: AbstractAsyncContextManager[object] | None = None,
        read: Callable[[], bytes] | None = None,
    ) -> AsyncIterator[Engine]:
        """Admit a request that vLLM's own app will answer; its tokens are counted in `stats`. `waiting` is a scope
        around the wait for its seat, which may end that; in it `read` gives the body, if that is to be checked."""
        engine = self._engine()
        route = engine.route(method, path)
        if route is Route.UNKNOWN:
            raise NoRoute(f"There is nothing at {path}.")
        if route is Route.WRONG_METHOD:
            raise MethodNotAllowed(f"{path} does not take {method}.", allowed=engine.methods(path))
        if route is Route.OPERATOR:
            permissions.check_operator(path, stats.caller)
        stats.endpoint = engine.template(path)
        stats.uses_engine = route is Route.USES_ENGINE
        self._refuse_when_draining()
        if not stats.uses_engine and method == "GET":
            yield engine
            return
        timeout_s = self._timeout(options)
        with CancelScope() as cancel_scope:
            timer = asyncio.get_running_loop().call_later(
                self._left(stats.caller, timeout_s),
                lambda: cancel_scope.end(overdue(timeout_s, stats.queued_s is None, stats.completion_tokens)),
            )
            if not stats.uses_engine:
                try:
                    yield engine
                finally:
                    timer.cancel()
                return
            self._mounted[cancel_scope] = stats
            permit = None
            token = CURRENT_STATS.set(stats)
            try:
                async with waiting or nullcontext():
                    if read is not None:
                        await engine.check_body(path, read(), stats)
                    began_s = self._clock.now()
                    permit = await self._gate.enter()
                    engine = await self._engine_soon()
                stats.queued_s = self._clock.now() - began_s
                yield engine
            finally:
                CURRENT_STATS.reset(token)
                timer.cancel()
                del self._mounted[cancel_scope]
                if permit is not None:
                    permit.release()
                self._look_if_empty()

    # What happens to all of them.

    def on_engine_lost(self) -> None:
        """The engine has died; those that run may go on with the next."""
        for stream in self._live.values():
            stream.writer.on_engine_lost()

    def on_engine_recovered(self) -> None:
        """They go on."""
        for stream in self._live.values():
            stream.writer.on_engine_recovered()

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let what runs finish for so long, then end the rest."""
        self.draining = True
        if self.active:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._empty,), timeout=timeout_s)
            self.end_all()

    def end_all(self) -> None:
        """End whatever runs, now."""
        self.draining = True
        for stream in list(self._live.values()):
            stream.writer.cancel(Draining("The server is stopping.", retry_after_s=1))
        for cancel_scope in list(self._mounted):
            cancel_scope.end(Draining("The server is stopping.", retry_after_s=1))

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise Draining("The server is stopping and takes no new requests.", retry_after_s=1)

    def _look_if_empty(self) -> None:
        if self._empty is not None and not self.active and not self._empty.done():
            self._empty.set_result(None)

    def _has_room(self) -> bool:
        """Whether another resumable stream would find room: now, and when all have grown."""
        logs = sum([stream.is_resumable for stream in self._live.values()])
        fits = (logs + 1) * self._limits.max_bytes * _SMALLEST_SHARE <= self._limits.max_total_bytes
        return self._retention.shrink(self._live_bytes() + self._limits.max_bytes) and fits

    def _rebalance(self) -> None:
        """Streams grow after they were let in: where they could pass the limit together, each keeps its share."""
        logs = [stream.writer.log for stream in self._live.values() if stream.is_resumable]
        share = min(self._limits.max_bytes, self._limits.max_total_bytes // max(1, len(logs)))
        if share == self._share == self._limits.max_bytes:
            return
        self._share = share
        for log in logs:
            log.set_limit(share)

    def _live_bytes(self) -> int:
        return sum([stream.writer.log.size_bytes for stream in self._live.values()])

    def _timeout(self, options: RequestOptions) -> float:
        longest_s = self._limits.max_timeout_s
        return longest_s if options.timeout_s is None else min(options.timeout_s, longest_s)

    def _left(self, caller: Caller, timeout_s: float) -> float:
        """Seconds until the deadline; it counts from the request's first byte."""
        return max(0.0, timeout_s - (self._clock.now() - caller.arrival_s))


__all__ = ["Limits", "NoRoute", "Registry", "Status"]
