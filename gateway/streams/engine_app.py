"""Requests that the engine's own HTTP app answers: they pass the same gate, deadline, cancellation and drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass

from gateway.admission.gate import AdmissionControl
from gateway.clock import Clock
from gateway.domain import RequestOptions, RequestStats
from gateway.engine.base import CURRENT_STATS, Engine, EngineSource
from gateway.errors import SluiceError
from gateway.streams.cancel_scope import CancelScope
from gateway.streams.limits import Limits
from gateway.streams.registry import Registry
from gateway.streams.stream import deadline_error


@dataclass(slots=True, eq=False)
class EngineAppAdmission:
    """Admits requests for the engine's app."""

    engines: EngineSource
    gate: AdmissionControl
    registry: Registry
    limits: Limits
    clock: Clock

    @property
    def engine(self) -> Engine:
        """The running engine. Raises why there is none."""
        return self.engines.engine

    def has_request(self, request_id: str) -> bool:
        """Whether the engine's app runs a request under that id here, of any owner."""
        try:
            return self.engine.has_request(request_id)
        except SluiceError:
            return False

    def load_report(self, kind: str) -> str | None:
        """The engine's load, with the requests in the queue, as the value of an ORCA header of that kind."""
        return self.engine.load_report(kind, self.gate.queued)

    def admit_light(self) -> Engine:
        """The engine, for a request that has no engine work and is answered at once."""
        self.registry.check_draining()
        return self.engine

    @asynccontextmanager
    async def admit(
        self,
        stats: RequestStats,
        options: RequestOptions,
        waiting: AbstractAsyncContextManager[object] | None = None,
        check: Callable[[Engine], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Engine]:
        """Admit a request; its tokens are counted in `stats`. Where `stats.uses_engine`, it waits for a slot: `waiting`
        is a scope around that wait that may end it, and in it `check` looks at the body."""
        engine = self.admit_light()
        timeout_s = self.limits.timeout_s(options)
        with CancelScope() as scope, ExitStack() as stack:
            timer = asyncio.get_running_loop().call_later(
                stats.caller.left_s(timeout_s, self.clock.now()),
                lambda: scope.end(deadline_error(timeout_s, stats.completion_tokens, is_queued=stats.queued_s is None)),
            )
            stack.callback(timer.cancel)
            if not stats.uses_engine:
                yield engine
                return
            stack.enter_context(self.registry.app_request(scope, stats))
            stack.callback(CURRENT_STATS.reset, CURRENT_STATS.set(stats))
            async with waiting or nullcontext():
                if check is not None:
                    await check(engine)
                began_s = self.clock.now()
                permit = await self.gate.enter()
                stack.callback(permit.release)
                engine = await self.engines.wait_ready()
            stats.queued_s = self.clock.now() - began_s
            yield engine
