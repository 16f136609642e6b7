"""The house's side of the engine: its processes, and what the workers are told of them.

To the supervisor this is an engine like any other: it dies, is revived, and is back when every worker serves on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from gateway.engine.base import RecoveryReport
from gateway.errors import EngineFailed
from gateway.multiprocess.messages import EngineAbandoned, EngineLost, EngineUp, ParentMessage, WorkerReady

logger = logging.getLogger("sluice")


class EngineProcesses(Protocol):
    """The engine processes of one start."""

    @property
    def addresses(self) -> Sequence[Mapping[str, str]]:
        """Where each worker meets them."""

    @property
    def pids(self) -> Sequence[int]:
        """Which they are."""

    async def wait_dead(self) -> None:
        """Return when any of them has died."""

    def kill(self) -> None:
        """End them, whatever they do."""

    async def end(self) -> None:
        """End what is left of them, and wait for it."""


class HostedEngine:
    """The engine of all workers; a `Restartable`."""

    def __init__(
        self, make: Callable[[], Awaitable[EngineProcesses]], tell: Callable[[int, ParentMessage], None], count: int
    ) -> None:
        """`make` starts engine processes for `count` workers; `tell` says something to the worker of that number."""
        self._make = make
        self._tell = tell
        self._count = count
        self._generation = 0
        self._cores: EngineProcesses | None = None
        self._ready: dict[int, WorkerReady] = {}
        self._all_ready = asyncio.Event()
        self._explained = 0
        self.unready_reason: str | None = None
        """Each worker looks for itself."""

    async def launch(self) -> HostedEngine:
        """Start the first. Raises if it cannot start, or dies before every worker serves on it."""
        await self._start()
        return self

    @property
    def ready_message(self) -> WorkerReady:
        """What a worker has said of what it serves."""
        return self._ready[0]

    async def wait_dead(self) -> None:
        assert self._cores is not None
        await self._cores.wait_dead()
        # One of several takes the others along. What is ended politely aborts what it has, and tells the workers so.
        self._cores.kill()
        self._send_lost()

    def take_explained_deaths(self) -> int:
        explained, self._explained = self._explained, 0
        return explained

    async def restart(self, *, last: bool = False) -> RecoveryReport:
        await self.stop()
        await self._start()
        failed: Counter[str] = Counter()
        for report in self._ready.values():
            failed.update(report.failed)
        reports = self._ready.values()
        # Too late for the death that they explain, in time for the next.
        self._explained += sum(report.explained_deaths for report in reports)
        return RecoveryReport(
            sum(report.continued for report in reports), dict(failed), sum(report.expelled for report in reports)
        )

    def fail_all(self) -> None:
        self._send_all(EngineAbandoned("The engine failed."))

    async def stop(self) -> None:
        cores, self._cores = self._cores, None
        if cores is not None:
            await cores.end()

    # What workers report.

    def on_worker_ready(self, number: int, message: WorkerReady) -> None:
        """That worker serves on the engine of that generation."""
        if message.generation == self._generation:
            self._ready[number] = message
            if len(self._ready) == self._count:
                self._all_ready.set()

    def on_unresponsive(self, number: int, generation: int) -> None:
        """To that worker the engine of that generation is dead. One that is not is made so."""
        if generation == self._generation and self._cores is not None:
            logger.debug("worker %d does not hear the engine", number)
            self._cores.kill()

    async def _start(self) -> None:
        self._ready.clear()
        self._all_ready.clear()
        # Before anything is awaited: whatever is said of the last one is history.
        self._generation += 1
        cores = self._cores = await self._make()
        for number, addresses in enumerate(cores.addresses):
            self._tell(number, EngineUp(self._generation, addresses, list(cores.pids)))
        death = asyncio.ensure_future(cores.wait_dead())
        ready = asyncio.ensure_future(self._all_ready.wait())
        try:
            await asyncio.wait((death, ready), return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                self._send_lost()
                raise EngineFailed("The engine died before it was of any use.")
        finally:
            for one in (death, ready):
                one.cancel()
            await asyncio.gather(death, ready, return_exceptions=True)

    def _send_lost(self) -> None:
        self._send_all(EngineLost(self._generation))

    def _send_all(self, message: ParentMessage) -> None:
        for number in range(self._count):
            self._tell(number, message)


__all__ = ["EngineProcesses", "HostedEngine"]
