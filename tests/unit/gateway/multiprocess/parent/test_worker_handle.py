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
from gateway.multiprocess.messages import Drain, Drained, EndNow, Evict, Failed, Leave, Message, Ready, Up
from gateway.multiprocess.parent import worker_handle
from gateway.multiprocess.parent.worker_handle import Member
from gateway.multiprocess.worker.context import Seat
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
        self.member = Member(1, cast("Any", self.process), ours, self.gate)
        self.seat = Seat(1, 2, self.theirs, Path("/nowhere"))
        self.heard: list[Message] = []
        self.orders: list[Message] = []
        self.seat.on_order = self.orders.append
        self.gone = asyncio.Event()

    async def open(self) -> asyncio.Task[None]:
        await self.member.open()
        await self.seat.open(self.gone.set)
        return asyncio.create_task(self.member.follow(lambda _, message: self.heard.append(message)))

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
    pair.member.tell(Up(1, {"at": "x"}))
    assert await pair.seat.tenancy.next_addresses() == {"at": "x"}

    pair.seat.serves("m", True, RecoveryReport(3, {"grammar": 1}))
    pair.seat.failed("No.", 2)
    pair.seat.drained()
    await until(lambda: len(pair.heard) == 3)

    assert pair.heard == [Ready(1, "m", True, 3, {"grammar": 1}), Failed("No.", 2), Drained()]

    for order in (Drain(3.0), Leave(), EndNow(), Evict(0)):
        pair.member.tell(order)
    await until(lambda: len(pair.orders) == 3)

    assert pair.orders == [Drain(3.0), Leave(), EndNow()]
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

    assert pair.member.gone
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
    for _ in range(3 * worker_handle._STUCK_AFTER):
        pair.member.look_after()
        await until(lambda: pair.member._unanswered == 0)

    assert not pair.process.killed

    for _ in range(worker_handle._STUCK_AFTER):
        # Nobody turns the worker's loop meanwhile.
        pair.member.look_after()

    assert not pair.process.killed

    pair.member.look_after()

    assert pair.process.killed == 1
    await pair.close(following)
