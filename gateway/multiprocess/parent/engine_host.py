"""The parent's side of the engine: its processes, and the messages about them to the workers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gateway.engine.base import RecoveryReport
from gateway.engine.shared import EngineProcesses
from gateway.errors import EngineFailed
from gateway.multiprocess.messages import EngineAbandoned, EngineLost, EngineUp, ParentMessage, WorkerReady

logger = logging.getLogger("sluice")


@dataclass(slots=True, eq=False)
class HostedEngine:
    """The engine of all workers, as a `Restartable` for the supervisor. It is up when every worker serves on it.
    `start_processes` starts engine processes for that many workers; `send` takes a worker's number."""

    start_processes: Callable[[], Awaitable[EngineProcesses]]
    send: Callable[[int, ParentMessage], None]
    workers: int
    _generation: int = field(default=0, init=False)
    _processes: EngineProcesses | None = field(default=None, init=False)
    _ready: dict[int, WorkerReady] = field(default_factory=dict, init=False)
    _all_ready: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _explained_deaths: int = field(default=0, init=False)
    unready_reason: str | None = field(default=None, init=False)
    """Always None: each worker checks the engine through its own client."""

    async def launch(self) -> HostedEngine:
        """Start the first engine. Raises if it cannot start, or dies before every worker serves on it."""
        await self._start()
        return self

    @property
    def ready_message(self) -> WorkerReady:
        """The last report of one of the workers; all serve the same model."""
        return self._ready[0]

    async def wait_dead(self) -> None:
        assert self._processes is not None
        await self._processes.wait_dead()
        # The other engines of a data-parallel group cannot go on. One that is terminated would abort its requests and
        # report them to the workers as ended; one that is killed leaves them to be sent again.
        self._processes.kill()
        self._send_all(EngineLost(self._generation))

    def take_explained_deaths(self) -> int:
        explained, self._explained_deaths = self._explained_deaths, 0
        return explained

    async def restart(self, *, last: bool = False) -> RecoveryReport:
        await self.stop()
        await self._start()
        reports = self._ready.values()
        failed: Counter[str] = Counter()
        for report in reports:
            failed.update(report.failed)
        # Workers report an explained death after the restart, so it counts at the next death.
        self._explained_deaths += sum(report.explained_deaths for report in reports)
        return RecoveryReport(
            sum(report.continued for report in reports), dict(failed), sum(report.expelled for report in reports)
        )

    def fail_all(self) -> None:
        self._send_all(EngineAbandoned("The engine failed."))

    async def stop(self) -> None:
        processes, self._processes = self._processes, None
        if processes is not None:
            await processes.end()

    # Messages of workers.

    def on_worker_ready(self, number: int, message: WorkerReady) -> None:
        """That worker serves on the engine of that generation."""
        if message.generation == self._generation:
            self._ready[number] = message
            if len(self._ready) == self.workers:
                self._all_ready.set()

    def on_unresponsive(self, number: int, generation: int) -> None:
        """The engine of that generation does not answer that worker: it is killed, unless it is gone already."""
        if generation == self._generation and self._processes is not None:
            logger.debug("the engine does not answer worker %d", number)
            self._processes.kill()

    async def _start(self) -> None:
        self._ready.clear()
        self._all_ready.clear()
        # Before the first await: messages about the engine before this one are ignored from here on.
        self._generation += 1
        processes = self._processes = await self.start_processes()
        for number, addresses in enumerate(processes.addresses):
            self.send(number, EngineUp(self._generation, addresses, list(processes.pids)))
        death = asyncio.ensure_future(processes.wait_dead())
        ready = asyncio.ensure_future(self._all_ready.wait())
        try:
            await asyncio.wait((death, ready), return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                self._send_all(EngineLost(self._generation))
                raise EngineFailed("The engine died before every worker served on it.")
        finally:
            for one in (death, ready):
                one.cancel()
            await asyncio.gather(death, ready, return_exceptions=True)

    def _send_all(self, message: ParentMessage) -> None:
        for number in range(self.workers):
            self.send(number, message)
