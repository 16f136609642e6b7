"""From a request's body to a running stream: parse, check, gate, prepare, submit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

from gateway.admission.gate import AdmissionControl
from gateway.bounded_text import log_defect
from gateway.clock import Clock
from gateway.domain import RequestOptions, RequestStats
from gateway.engine.base import Call, EngineSource
from gateway.engine.bounded_json import is_cheap_to_parse
from gateway.errors import DeadlineExceeded, InternalError, Overloaded, SluiceError
from gateway.offload import Offload
from gateway.protocols.base import StreamProtocol
from gateway.streamlog.base import OpenLog
from gateway.streams.limits import Limits
from gateway.streams.registry import Registry
from gateway.streams.stream import Stream, deadline_error
from gateway.streams.tick_limiter import TickLimiter
from gateway.streams.writer import StreamWriter

logger = logging.getLogger(__name__)

# The number of requests that are parsed, and of those that are prepared, in one turn of the event loop. Each takes it
# about a millisecond.
BEGIN_PER_TURN = 8
# Bodies with no more lists and objects are parsed on the event loop, in up to a millisecond. A thread costs 0.1 ms.
_LIGHT_CONTAINERS = 128


@dataclass(slots=True, eq=False)
class StreamStarter:
    """Starts streams, and enters them in `registry`. `new_id` gives an id that cannot be guessed, without the
    endpoint's prefix."""

    engines: EngineSource
    gate: AdmissionControl
    registry: Registry
    _: KW_ONLY
    open_log: OpenLog
    limits: Limits
    clock: Clock
    new_id: Callable[[], str]
    _offload: Offload = field(default_factory=partial(Offload, "sluice-parse"), init=False)
    _parsing: TickLimiter = field(default_factory=partial(TickLimiter, BEGIN_PER_TURN), init=False)
    _preparing: TickLimiter = field(default_factory=partial(TickLimiter, BEGIN_PER_TURN), init=False)

    def begin(self, protocol: StreamProtocol, body: bytes, stats: RequestStats, options: RequestOptions) -> Stream:
        """As `start`, for a short body."""
        self.registry.check_draining()
        return self._begin(protocol, self.engines.engine.parse(protocol.endpoint, body), stats, options)

    async def start(
        self,
        protocol: StreamProtocol,
        body: bytes,
        stats: RequestStats,
        options: RequestOptions,
        waiting: AbstractAsyncContextManager[object] | None = None,
    ) -> Stream:
        """Parse a body and begin its stream; later failures are for the stream's readers. The parsing of a long body
        does not hold up the event loop; `waiting` is a scope around it that may end it.

        Raises the errors of `Engine.parse`, why there is no engine, Draining, DeadlineExceeded, and Overloaded if there
        is no room for another resumable stream.
        """
        await self._parsing.wait_turn()
        if is_cheap_to_parse(body, _LIGHT_CONTAINERS):
            return self.begin(protocol, body, stats, options)
        self.registry.check_draining()
        timeout_s, limit_s = self.limits.timeout_s(options), self.limits.prepare_timeout_s
        left_s = stats.caller.left_s(timeout_s, self.clock.now())
        parse = partial(self.engines.engine.parse, protocol.endpoint, body)
        try:
            async with waiting or nullcontext(), asyncio.timeout(min(left_s, limit_s)):
                call = await self._offload.run(parse, size=len(body), tenant=stats.caller.owner)
        except TimeoutError:
            if left_s <= limit_s:
                raise deadline_error(timeout_s, 0, is_queued=True) from None
            raise DeadlineExceeded(
                f"Checking the request body took longer than {limit_s:g} s (server.prepare_timeout_s)."
            ) from None
        self.registry.check_draining()
        return self._begin(protocol, call, stats, options)

    def _begin(self, protocol: StreamProtocol, call: Call, stats: RequestStats, options: RequestOptions) -> Stream:
        # A whole answer has no events that a client could resume.
        grace_s = self.limits.grace_s(options) if call.stream else None
        if grace_s is not None and not self.registry.retention.has_room():
            stats.instrumentation.rejected("resumable_full")
            raise Overloaded("There is no room for another resumable stream.", retry_after_s=5)
        stats.id = protocol.endpoint.id_prefix + self.new_id()
        stats.is_resumable = grace_s is not None
        writer = StreamWriter(
            stats=stats,
            open_log=self.open_log,
            keep_bytes=None if grace_s is None else self.limits.max_bytes,
            protocol=protocol,
            is_streaming=call.stream,
            clock=self.clock,
            on_end=partial(self.registry.on_ended, stats.id),
        )
        stream = Stream(writer, protocol, is_streaming=call.stream, grace_s=grace_s)
        self.registry.add(stream)
        stream.start_task = asyncio.get_running_loop().create_task(self._run_until_submitted(call, writer))
        timeout_s = self.limits.timeout_s(options)
        stream.expire_in(stats.caller.left_s(timeout_s, self.clock.now()), timeout_s)
        return stream

    async def _run_until_submitted(self, call: Call, writer: StreamWriter) -> None:
        """From the gate to the engine. Every failure ends in the stream."""
        stats = writer.stats
        try:
            await (await self.engines.wait_ready()).check(call, stats)
            began_s = self.clock.now()
            writer.admit(await self.gate.enter(call.slots))
            # The engine that is running now, which need not be the one that was when the wait began.
            engine = await self.engines.wait_ready()
            stats.queued_s = self.clock.now() - began_s
            await self._preparing.wait_turn()
            prepared = await engine.prepare(call, stats)
            writer.start(prepared.template)
            stats.instrumentation.overhead(self.clock.now() - stats.caller.arrival_s - stats.queued_s)
            writer.attach(await engine.submit(prepared, writer))
        except SluiceError as error:
            writer.fail(error)
        except Exception as error:
            log_defect(logger, "a request failed with an unexpected error", error)
            writer.fail(InternalError("The server failed to answer this request."))
