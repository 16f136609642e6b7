from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from gateway.transports.common.timers import DeadlineTimer
from tests.support.time import clock, in_virtual_time


class Connection:
    """Records the times of its calls, and returns the time of the next."""

    def __init__(self, again: Callable[[float], float]) -> None:
        self.called: list[float] = []
        self._again = again

    def check(self, now_s: float) -> float:
        assert now_s == clock().now()
        self.called.append(now_s)
        return self._again(now_s)


def every(seconds: float) -> Connection:
    return Connection(lambda now_s: now_s + seconds)


def timers() -> int:
    """How many timers stand in the running loop, besides the one of the sleep that the test is in."""
    return sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


@in_virtual_time
async def test_each_check_is_called_exactly_when_it_is_due() -> None:
    timer, began = DeadlineTimer(clock()), clock().now()
    slow, fast = every(10), every(3)
    timer.add(slow.check, began + 10)
    timer.add(fast.check, began + 1)
    await asyncio.sleep(21)

    assert slow.called == pytest.approx([began + 10, began + 20])
    assert fast.called == pytest.approx([began + 1 + 3 * turn for turn in range(7)])


@in_virtual_time
async def test_a_check_that_is_due_already_is_called_in_the_next_turn() -> None:
    timer, late = DeadlineTimer(clock()), every(100)
    began = clock().now()
    timer.add(late.check, began - 5)
    await asyncio.sleep(1)

    assert late.called == [began]


@in_virtual_time
async def test_thousands_of_connections_share_one_timer() -> None:
    timer, began = DeadlineTimer(clock()), clock().now()
    connections = [every(15) for _ in range(5000)]
    most = 0
    for number, connection in enumerate(connections):
        timer.add(connection.check, began + 15 - number / 1000)
        most = max(most, timers()) if number % 500 == 0 else most

    assert (len(timer), most, timers()) == (5000, 1, 1)

    await asyncio.sleep(45.5)

    assert timers() == 1
    assert {len(connection.called) for connection in connections} == {3}
    assert connections[0].called == pytest.approx([began + 15, began + 30, began + 45])
    assert connections[4999].called[0] == pytest.approx(began + 10.001)


@in_virtual_time
async def test_a_removed_check_is_called_no_more() -> None:
    timer, began = DeadlineTimer(clock()), clock().now()
    stays, goes = every(5), every(5)
    timer.add(stays.check, began + 5)
    number = timer.add(goes.check, began + 5)
    await asyncio.sleep(6)
    timer.remove(number)

    assert len(timer) == 1

    await asyncio.sleep(10)

    assert (len(stays.called), len(goes.called)) == (3, 1)
    assert len(timer) == 1


@in_virtual_time
async def test_a_check_that_is_never_due_again_is_counted_until_it_is_removed() -> None:
    timer, began = DeadlineTimer(clock()), clock().now()
    stuck = Connection(lambda _: math.inf)
    number = timer.add(stuck.check, began + 5)
    await asyncio.sleep(100)

    assert stuck.called == pytest.approx([began + 5])
    assert (len(timer), timers()) == (1, 0)

    timer.remove(number)

    assert len(timer) == 0


@in_virtual_time
async def test_other_checks_are_called_behind_one_that_is_never_due_again() -> None:
    timer, began = DeadlineTimer(clock()), clock().now()
    timer.add(Connection(lambda _: math.inf).check, began + 5)
    await asyncio.sleep(6)
    other = every(5)
    timer.add(other.check, began + 10)
    await asyncio.sleep(10)

    assert len(other.called) == 2


@in_virtual_time
async def test_removed_checks_leave_nothing_behind() -> None:
    """A short stream is gone long before its first question; its entry must not stay for the rest of the period."""
    timer = DeadlineTimer(clock())
    most = 0
    for _ in range(10_000):
        timer.remove(timer.add(every(15).check, clock().now() + 15))
        most = max(most, len(timer._due))

    assert len(timer) == 0
    assert most < 100

    await asyncio.sleep(16)

    assert (timer._due, timer._removed) == ([], set())
    assert timers() == 0
