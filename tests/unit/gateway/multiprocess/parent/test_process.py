"""The parent process at its end, over scripted workers and engine processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway.domain import Cause
from gateway.multiprocess.messages import (
    AbortClient,
    Drain,
    EngineAbandoned,
    EngineUnresponsive,
    EngineUp,
    Message,
    ParentMessage,
    Shutdown,
    ShutdownNow,
    WorkerClosed,
    WorkerDrained,
    WorkerFailed,
    WorkerReady,
)
from gateway.multiprocess.parent.process import ParentProcess
from gateway.settings import Settings
from tests.support.time import clock, in_virtual_time, settle
from tests.unit.gateway.multiprocess.parent.test_engine_host import ScriptedProcesses


class DeadProcess:
    exitcode = -9

    def join(self, timeout_s: float | None = None) -> None: ...


class ScriptedWorker:
    """Serves at once, drains at once unless `is_busy`, and reports its engine dead when it exits, as vLLM's client does
    now and then."""

    def __init__(self, number: int, *, is_busy: bool = False) -> None:
        self.number = number
        self.is_drained = self.is_gone = False
        self.is_busy = is_busy
        self.process = DeadProcess()
        self.received: list[ParentMessage] = []
        self.exited = asyncio.Event()

    async def open(self) -> None: ...

    async def receive(self, handle: Callable[[Any, Message], None]) -> None:
        self._handle = handle
        await self.exited.wait()
        self.is_gone = True

    def send(self, message: ParentMessage) -> None:
        if self.is_gone:
            return
        self.received.append(message)
        match message:
            case EngineUp(generation):
                self.report(WorkerReady(generation, "m", True))
            case Drain():
                if not self.is_busy:
                    self.report(WorkerDrained())
            case Shutdown() | ShutdownNow():
                self.report(EngineUnresponsive(1))
                self.report(WorkerClosed({"completed": 2}))

    def check(self) -> None: ...

    async def join(self, within_s: float) -> None:
        await asyncio.sleep(2)
        self.exited.set()

    def report(self, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self._handle, self, message)


class Parent:
    def __init__(self, *, is_busy: bool = False) -> None:
        self.started: list[ScriptedProcesses] = []
        self.ready: list[tuple[str, bool]] = []
        settings = Settings(server={"workers": 2, "drain_timeout_s": 30})
        self.process = ParentProcess(settings, self._start, lambda *model: self.ready.append(model), clock())
        self.workers = [ScriptedWorker(number, is_busy=is_busy) for number in (0, 1)]
        for worker in self.workers:
            self.process.add_worker(cast("Any", worker))
        self.running = asyncio.get_running_loop().create_task(self.process.run())

    async def _start(self) -> ScriptedProcesses:
        self.started.append(ScriptedProcesses(({"at": "a"}, {"at": "b"})))
        return self.started[-1]

    @property
    def last_received(self) -> list[ParentMessage]:
        return [worker.received[-1] for worker in self.workers]


@in_virtual_time
async def test_after_a_signal_the_workers_drain_and_no_other_engine_is_started() -> None:
    parent = Parent()
    await settle()

    assert parent.ready == [("m", True)]
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL

    os.kill(os.getpid(), signal.SIGTERM)

    assert await parent.running == 0
    assert parent.last_received == [Shutdown(), Shutdown()]
    assert (len(parent.started), parent.started[0].ended) == (1, True)
    assert (parent.process.reason, parent.process.endings) == ("SIGTERM", {Cause.COMPLETED: 4})


@in_virtual_time
async def test_a_second_signal_ends_the_drain() -> None:
    parent = Parent(is_busy=True)
    await settle()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(10)

    assert parent.last_received == [Drain(30), Drain(30)]

    os.kill(os.getpid(), signal.SIGINT)

    assert await parent.running == 0
    assert parent.last_received == [ShutdownNow(), ShutdownNow()]
    assert parent.process.reason == "SIGTERM, then SIGINT"


@in_virtual_time
async def test_a_worker_that_does_not_end_its_drain_is_not_waited_for() -> None:
    parent = Parent(is_busy=True)
    await settle()
    os.kill(os.getpid(), signal.SIGTERM)

    assert await parent.running == 0
    assert parent.last_received == [ShutdownNow(), ShutdownNow()]


@in_virtual_time
async def test_when_a_worker_dies_its_requests_are_aborted_and_the_others_drain() -> None:
    parent = Parent()
    await settle()
    parent.workers[1].exited.set()

    assert await parent.running == 1
    assert "Worker 1 died (exit code -9)" in str(parent.process.failure)
    assert parent.workers[0].received[1:] == [AbortClient(1), Drain(30), Shutdown()]


@in_virtual_time
async def test_a_worker_that_cannot_serve_ends_the_server_with_its_reason() -> None:
    parent = Parent()
    await settle()
    parent.workers[0].report(WorkerFailed("No such model.", 2))

    assert await parent.running == 2
    assert str(parent.process.failure) == "No such model."
    assert parent.workers[1].received[-2:] == [EngineAbandoned("No such model."), Shutdown()]


@in_virtual_time
async def test_the_parent_handles_no_message_of_its_own() -> None:
    parent = Parent()
    await settle()
    with pytest.raises(AssertionError, match="Shutdown"):
        parent.workers[0]._handle(parent.workers[0], Shutdown())
    os.kill(os.getpid(), signal.SIGTERM)
    await parent.running
