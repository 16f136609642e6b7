"""The parent of the workers at its end, over workers and engine processes that do not exist."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from gateway import app
from gateway.logs import StartupLog
from gateway.multiprocess.messages import (
    Drain,
    EngineUnresponsive,
    EngineUp,
    Message,
    ParentMessage,
    Shutdown,
    WorkerDrained,
    WorkerReady,
)
from gateway.multiprocess.parent.process import ParentProcess, ServeOptions
from gateway.settings import Settings
from tests.support.time import in_virtual_time, settle
from tests.unit.gateway.multiprocess.parent.test_engine_host import Cores


class Worker:
    """Serves at once, drains at once, and finds its engine dead when it leaves, as vLLM's client does now and then."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_drained = self.is_gone = False
        self.told: list[ParentMessage] = []
        self._left = asyncio.Event()

    async def open(self) -> None: ...

    async def receive(self, hear: Callable[[Any, Message], None]) -> None:
        self._hear = hear
        await self._left.wait()

    def send(self, message: ParentMessage) -> None:
        self.told.append(message)
        match message:
            case EngineUp(generation):
                self._say(WorkerReady(generation, "m", True))
            case Drain():
                self._say(WorkerDrained())
            case Shutdown():
                self._say(EngineUnresponsive(1))

    def check(self) -> None: ...

    async def join(self, within_s: float) -> None:
        await asyncio.sleep(2)
        self._left.set()

    def _say(self, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self._hear, self, message)


@in_virtual_time
async def test_at_the_end_nobody_needs_another_engine() -> None:
    made: list[Cores] = []

    async def make() -> Cores:
        made.append(Cores(({"at": "a"}, {"at": "b"})))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "engine_processes", lambda plan: make)
        house = ParentProcess(
            Settings(server={"workers": 2}), ServeOptions(None, (), None), StartupLog(), "http://here"
        )
    workers = [Worker(number) for number in (0, 1)]
    house._workers = workers  # type: ignore[assignment]
    living = asyncio.get_running_loop().create_task(house.run())
    await settle()

    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL

    os.kill(os.getpid(), signal.SIGTERM)

    assert await living == 0
    assert [worker.told[-1] for worker in workers] == [Shutdown(), Shutdown()]
    assert (len(made), made[0].ended) == (1, True)
