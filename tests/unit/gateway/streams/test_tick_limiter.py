from __future__ import annotations

import asyncio

from gateway.streams.tick_limiter import TickLimiter
from tests.support.time import in_virtual_time, settle


@in_virtual_time
async def test_a_single_task_does_not_wait() -> None:
    tick_limiter = TickLimiter(2)
    for _ in range(10):
        entering = tick_limiter.wait_turn()
        try:
            entering.send(None)
        except StopIteration:
            pass
        else:
            raise AssertionError("it has waited")
        await asyncio.sleep(0)


@in_virtual_time
async def test_a_crowd_passes_in_order_so_many_a_turn() -> None:
    tick_limiter = TickLimiter(3)
    passed: list[tuple[int, int]] = []
    turn = 0

    async def pass_through(number: int) -> None:
        await tick_limiter.wait_turn()
        passed.append((turn, number))

    tasks = [asyncio.ensure_future(pass_through(number)) for number in range(8)]
    while len(passed) < 8:
        await asyncio.sleep(0)
        turn += 1
    await asyncio.gather(*tasks)

    assert [number for _, number in passed] == list(range(8))
    turns = [at for at, _ in passed]
    assert max(turns.count(at) for at in turns) == 3


@in_virtual_time
async def test_a_task_cancelled_while_waiting_uses_no_turn() -> None:
    tick_limiter = TickLimiter(1)
    passed: list[int] = []

    async def pass_through(number: int) -> None:
        await tick_limiter.wait_turn()
        passed.append(number)

    tasks = [asyncio.ensure_future(pass_through(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await settle()

    assert passed == [0, 3]
    assert tasks[1].cancelled()
    assert tasks[2].cancelled()
