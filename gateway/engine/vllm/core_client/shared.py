"""vLLM's client of engine processes that belong to a parent, made to outlive them as `core` does.

vLLM watches engine processes only in the process that has started them, so the engine host reports
their death to this client, and this client reports to the host when they do not answer.
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

# Another one's trial takes as long; longer, and somebody has to go first.
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

    def _hear(self, outputs: Any) -> None:
        super()._mark_heard(outputs)
        if outputs.scheduler_stats is not None:
            self.stats_received_s[outputs.engine_index] = self._clock.now()

    def mark_lost(self) -> None:
        if not self.lost.is_set():
            # Either the host has reported the death already, or it gets this report and ends the processes.
            self._engine_host.report_unresponsive()
        super().mark_lost()

    def _falls(self) -> bool:
        # The processes are not ours to look at.
        return self.lost.is_set()

    @property
    def pids(self) -> list[int]:
        return list(self._engine_host.pids)

    def kill(self) -> None:
        """`mark_lost` follows, which tells whose processes they are."""

    async def _lock(self, *, exclusive: bool) -> Lock:
        """All clients lose their engine together, and each has its own requests to try: one after the other, and when
        all have sent what goes on at once."""
        path = self._engine_host.trial_lock
        if path is None:
            return nullcontext()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        waited_s = 0.0
        while waited_s < _LOCK_WITHIN_S:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
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


__all__ = ["SharedCoreClient"]
