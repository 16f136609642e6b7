"""vLLM's client of engine processes that belong to a parent, which outlives them as `restartable` does.

vLLM watches engine processes only in the process that has started them. So the host reports their death to this client,
and the client reports engines that do not answer to the host.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import nullcontext
from typing import Any

from gateway.clock import Clock
from gateway.engine.base import RecoveryReport
from gateway.engine.shared import EngineHost
from gateway.engine.vllm import engine_process
from gateway.engine.vllm.core_client.restartable import RestartableCoreClient
from gateway.engine.vllm.core_client.trial_replay import Lock

# The trial of another client takes as long; after that this one goes on without the lock.
_LOCK_WITHIN_S = 15.0
_LOCK_EVERY_S = 0.02


class SharedCoreClient(RestartableCoreClient):
    """A `SharedEngineClient`."""

    def __init__(self, core: Any, output_processor: Any, clock: Clock, engine_host: EngineHost) -> None:
        super().__init__(core, output_processor, clock)
        self._engine_host = engine_host
        self.stats_received_s: dict[int, float] = {}
        engine_host.attach(self)

    @property
    def has_requests(self) -> bool:
        return bool(self._output_processor.has_unfinished_requests())

    def _mark_output(self, outputs: Any) -> None:
        super()._mark_output(outputs)
        if outputs.scheduler_stats is not None:
            self.stats_received_s[outputs.engine_index] = self._clock.now()

    def mark_lost(self) -> None:
        if not self.lost.is_set():
            # The host may have reported the death already; otherwise it now ends the processes.
            self._engine_host.report_unresponsive()
        super().mark_lost()

    def _is_dying(self) -> bool:
        # The processes belong to the host, which watches them.
        return self.lost.is_set()

    @property
    def pids(self) -> list[int]:
        return list(self._engine_host.pids)

    def kill(self) -> None:
        """Does nothing: `mark_lost` follows, and has the host end its processes."""

    async def _lock(self, *, exclusive: bool) -> Lock:
        """All clients lose their engine together, and each has its own requests to try. They try them one client after
        the other, when all have sent again the requests that are no suspects."""
        path = self._engine_host.trial_lock
        if path is None:
            return nullcontext()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        waited_s = 0.0
        while waited_s < _LOCK_WITHIN_S:
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited_s += _LOCK_EVERY_S
                await asyncio.sleep(_LOCK_EVERY_S)
        return os.fdopen(descriptor)

    async def replace(self, core: Any, *, last: bool = False) -> RecoveryReport:
        recovery = await super().replace(core, last=last)
        self._engine_host.attach(self)
        return recovery

    async def abort_client(self, number: int) -> None:
        await self._core.call_utility_async(engine_process.ABORT_CLIENT, number)
