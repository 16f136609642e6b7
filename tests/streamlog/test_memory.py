from __future__ import annotations

import asyncio

import pytest

from gateway.errors import EngineFailed
from gateway.model import Cause, Delta
from gateway.streamlog.base import Batch, Ended
from gateway.streamlog.memory import PendingLog
from tests.support.time import in_virtual_time, settle

DONE = Ended(Cause.COMPLETED)


@in_virtual_time
async def test_what_was_appended_is_taken_once_and_in_order() -> None:
    log = PendingLog()
    log.append(Delta("a", 1))
    log.append(Delta("b", 1))

    assert await log.take() == Batch([Delta("a", 1), Delta("b", 1)], None)

    log.append(Delta("c", 1))

    assert await log.take() == Batch([Delta("c", 1)], None)


@in_virtual_time
async def test_a_waiting_reader_wakes_for_a_piece_and_takes_all_that_came_in_the_same_turn() -> None:
    log = PendingLog()
    reading = asyncio.get_running_loop().create_task(log.take())
    await settle()
    log.append(Delta("a", 1))
    log.append(Delta("b", 1))
    log.close(DONE)

    assert await reading == Batch([Delta("a", 1), Delta("b", 1)], DONE)


@in_virtual_time
async def test_the_end_alone_wakes_the_reader_and_stays_readable() -> None:
    log = PendingLog()
    reading = asyncio.get_running_loop().create_task(log.take())
    await settle()
    log.close(DONE)

    assert await reading == Batch([], DONE)
    assert await log.take() == Batch([], DONE)


@in_virtual_time
async def test_after_the_end_nothing_is_taken_in() -> None:
    log = PendingLog()
    log.close(DONE)
    log.append(Delta("late", 1))
    log.close(Ended(Cause.ENGINE_FAILED, EngineFailed("Down.")))

    assert await log.take() == Batch([], DONE)


@in_virtual_time
async def test_a_reader_that_gives_up_loses_nothing() -> None:
    log = PendingLog()
    reading = asyncio.get_running_loop().create_task(log.take())
    await settle()
    log.append(Delta("a", 1))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert await log.take() == Batch([Delta("a", 1)], None)
