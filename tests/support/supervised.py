"""A supervisor over a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.engine.base import RecoveryReport
from gateway.engine.supervisor import Supervisor
from tests.support.engine import ScriptedEngine
from tests.support.time import clock


class Supervised:
    """A supervisor that runs, and the events that it has reported."""

    def __init__(
        self,
        launch: Callable[[], Awaitable[ScriptedEngine]] | None = None,
        *,
        max_restarts: int | None = 3,
        window_s: float = 600,
    ) -> None:
        self.engine = ScriptedEngine()
        self.events: list[str | RecoveryReport] = []
        self.supervisor = Supervisor(
            launch or self._launch,
            max_restarts=max_restarts,
            window_s=window_s,
            clock=clock(),
            on_lost=lambda: self.events.append("lost"),
            on_recovered=self.events.append,
        )
        self.running = asyncio.get_running_loop().create_task(self.supervisor.run(lambda: self.events.append("ready")))

    async def _launch(self) -> ScriptedEngine:
        return self.engine

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.supervisor.stop()
