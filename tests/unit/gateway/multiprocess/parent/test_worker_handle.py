"""A worker handle and the worker's context, at the two ends of one channel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.admission.gate import Gate
from gateway.clock import SystemClock
from gateway.errors import Overloaded
from gateway.multiprocess import messages
from gateway.multiprocess.messages import Drain, EngineUp, Message, WorkerDrained
from gateway.multiprocess.parent.worker_handle import MAX_UNANSWERED, WorkerHandle
from gateway.multiprocess.worker.context import WorkerContext
from tests.support.instrumentation import Recorder
from tests.support.time import in_real_time


class ScriptedProcess:
    """A process that lives until it is killed, or until its join if it is `obedient`."""

    def __init__(self, *, obedient: bool = False) -> None:
        self.kills = 0
        self._obedient = obedient

    def kill(self) -> None:
        self.kills += 1

    def join(self, timeout_s: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return not self._obedient and self.kills == 0


def make_gate() -> Gate:
    return Gate(max_concurrent=1, max_waiting=0, queue_timeout_s=5, clock=SystemClock(), instrumentation=Recorder())


class Pair:
    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.process = ScriptedProcess()
        self.gate = make_gate()
        self.worker = WorkerHandle(1, cast("Any", self.process), self._ours, self.gate)
        self.context = WorkerContext(1, 2, self._theirs, Path("/nowhere"))
        self.received: list[Message] = []
        self.orders: list[Message] = []
        self.context.on_shutdown = self.orders.append
        self.parent_lost = asyncio.Event()

    async def open(self) -> None:
        await self.worker.open()
        await self.context.open(self.parent_lost.set)
        self.receiving = asyncio.create_task(self.worker.receive(lambda _, message: self.received.append(message)))

    async def close(self) -> None:
        """As the end of either process does."""
        self._theirs.shutdown(socket.SHUT_RDWR)
        await self.receiving
        await self.parent_lost.wait()


async def until(check: Callable[[], object]) -> None:
    while not check():
        await asyncio.sleep(0.001)


@in_real_time
async def test_messages_reach_the_other_end() -> None:
    pair = Pair()
    pair.worker.send(Drain(1.0))
    await pair.open()
    pair.worker.send(EngineUp(1, {"at": "x"}))

    assert await pair.context.engine_host.next_addresses() == {"at": "x"}

    reports = [messages.WorkerFailed("No.", 2), WorkerDrained(), messages.WorkerClosed({"completed": 1})]
    for report in reports:
        pair.context.send(report)
    await until(lambda: len(pair.received) == 3)

    assert pair.received == reports

    for order in (Drain(3.0), messages.Shutdown(), messages.ShutdownNow(), messages.AbortClient(0)):
        pair.worker.send(order)
    await until(lambda: len(pair.orders) == 3)

    assert pair.orders == [Drain(3.0), messages.Shutdown(), messages.ShutdownNow()]
    await pair.close()


@in_real_time
async def test_a_permit_is_acquired_over_the_channel_and_released_at_its_end() -> None:
    pair = Pair()
    await pair.open()
    gate = pair.context.make_gate(max_concurrent=1, clock=SystemClock(), instrumentation=Recorder())
    permit = await gate.enter()
    with pytest.raises(Overloaded):
        await gate.enter()

    assert pair.gate.slots_taken == 1

    permit.release()
    await gate.enter()

    assert not pair.worker.is_gone

    await pair.close()

    assert pair.worker.is_gone
    assert pair.gate.slots_taken == 0


@in_real_time
async def test_a_worker_that_answers_is_left_alone_and_one_that_is_stuck_is_killed() -> None:
    pair = Pair()
    await pair.open()
    pair.context.on_shutdown = lambda _: pair.context.send(WorkerDrained())
    for count in range(1, 3 * MAX_UNANSWERED):
        pair.worker.check()
        # The worker handles messages in their order, so it has answered the ping before this one.
        pair.worker.send(Drain(1.0))
        await until(lambda count=count: pair.received == [WorkerDrained()] * count)  # type: ignore[misc]

    assert not pair.process.kills

    for _ in range(MAX_UNANSWERED):
        # The event loop does not turn meanwhile, so the worker cannot answer.
        pair.worker.check()

    assert not pair.process.kills

    pair.worker.check()

    assert pair.process.kills == 1
    await pair.close()


@pytest.mark.parametrize(("obedient", "kills"), [(True, 0), (False, 1)])
@in_real_time
async def test_a_process_that_does_not_end_in_time_is_killed(obedient: bool, kills: int) -> None:
    process = ScriptedProcess(obedient=obedient)
    ours, theirs = socket.socketpair()
    await WorkerHandle(0, cast("Any", process), ours, make_gate()).join(0.01)
    ours.close()
    theirs.close()

    assert process.kills == kills
