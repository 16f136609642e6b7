"""A worker as the house sees it, and the worker's end of the same line."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.admission.gate import Gate
from gateway.clock import SystemClock
from gateway.engine.base import RecoveryReport
from gateway.errors import Overloaded
from gateway.multiprocess.messages import (
    AbortClient,
    Drain,
    EngineUp,
    Message,
    Shutdown,
    ShutdownNow,
    WorkerDrained,
    WorkerFailed,
    WorkerReady,
)
from gateway.multiprocess.parent import worker_handle
from gateway.multiprocess.parent.worker_handle import WorkerHandle
from gateway.multiprocess.worker.context import WorkerContext
from tests.support.instrumentation import Recorder
from tests.unit.gateway.multiprocess.worker.test_peer_proxy import in_real_time


class Process:
    """A process that does not exist."""

    def __init__(self) -> None:
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1


class Pair:
    """The house's side and the worker's, with a real line between."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.process = Process()
        self.gate = Gate(
            max_concurrent=1, max_waiting=0, queue_timeout_s=5, clock=SystemClock(), instrumentation=Recorder()
        )
        self.member = WorkerHandle(1, cast("Any", self.process), ours, self.gate)
        self.seat = WorkerContext(1, 2, self.theirs, Path("/nowhere"))
        self.heard: list[Message] = []
        self.orders: list[Message] = []
        self.seat.on_shutdown = self.orders.append
        self.gone = asyncio.Event()

    async def open(self) -> asyncio.Task[None]:
        await self.member.open()
        await self.seat.open(self.gone.set)
        return asyncio.create_task(self.member.receive(lambda _, message: self.heard.append(message)))

    async def close(self, following: asyncio.Task[None]) -> None:
        assert self.seat._channel is not None
        assert self.member._channel is not None
        self.seat._channel.close()
        await following
        self.member._channel.close()
        for task in self.seat._tasks:
            task.cancel()
        await asyncio.sleep(0.01)


async def until(check: Callable[[], object]) -> None:
    while not check():
        await asyncio.sleep(0.001)


@in_real_time
async def test_what_a_worker_reports_is_heard_and_what_it_is_told_is_done() -> None:
    pair = Pair()
    following = await pair.open()
    pair.member.send(EngineUp(1, {"at": "x"}))
    assert await pair.seat.engine_host.next_addresses() == {"at": "x"}

    pair.seat.send_ready("m", True, RecoveryReport(3, {"grammar": 1}))
    pair.seat.send_failed("No.", 2)
    pair.seat.send_drained()
    await until(lambda: len(pair.heard) == 3)

    assert pair.heard == [WorkerReady(1, "m", True, 3, {"grammar": 1}), WorkerFailed("No.", 2), WorkerDrained()]

    for order in (Drain(3.0), Shutdown(), ShutdownNow(), AbortClient(0)):
        pair.member.send(order)
    await until(lambda: len(pair.orders) == 3)

    assert pair.orders == [Drain(3.0), Shutdown(), ShutdownNow()]
    await pair.close(following)


@in_real_time
async def test_a_seat_is_asked_for_over_the_line_and_freed_by_its_end() -> None:
    pair = Pair()
    following = await pair.open()
    gate = pair.seat.gate(max_concurrent=1, clock=SystemClock(), instrumentation=Recorder())
    await gate.enter()
    with pytest.raises(Overloaded):
        await gate.enter()

    assert pair.gate.taken == 1

    await pair.close(following)

    assert pair.member.is_gone
    assert pair.gate.taken == 0


@in_real_time
async def test_either_notices_that_the_other_is_gone() -> None:
    pair = Pair()
    following = await pair.open()
    assert pair.member._channel is not None
    pair.member._channel.close()
    await pair.gone.wait()
    await pair.close(following)


@in_real_time
async def test_a_worker_that_answers_is_left_alone_and_one_that_is_stuck_is_ended() -> None:
    pair = Pair()
    following = await pair.open()
    for _ in range(3 * worker_handle.MAX_UNANSWERED):
        pair.member.check()
        await until(lambda: pair.member._unanswered == 0)

    assert not pair.process.killed

    for _ in range(worker_handle.MAX_UNANSWERED):
        # Nobody turns the worker's loop meanwhile.
        pair.member.check()

    assert not pair.process.killed

    pair.member.check()

    assert pair.process.killed == 1
    await pair.close(following)
