from __future__ import annotations

import asyncio

import pytest

from gateway.loop_lag import EVERY_S, LoopLag
from tests.support.instrumentation import Recorder
from tests.support.time import clock, in_virtual_time


@in_virtual_time
async def test_an_idle_loop_has_no_lag() -> None:
    instrumentation = Recorder()
    lag = LoopLag(clock(), instrumentation)
    lag.start()
    await asyncio.sleep(10 * EVERY_S + EVERY_S / 2)

    assert instrumentation.lags == pytest.approx([0.0] * 10, abs=1e-6)

    lag.stop()
    await asyncio.sleep(1)

    assert len(instrumentation.lags) == 10


@in_virtual_time
async def test_a_blocked_loop_is_reported_in_full_and_once() -> None:
    instrumentation = Recorder()
    lag = LoopLag(clock(), instrumentation)
    lag.start()
    await asyncio.sleep(EVERY_S / 2)
    clock().advance(3.0)
    await asyncio.sleep(EVERY_S)
    lag.stop()

    assert instrumentation.lags == pytest.approx([3.0 - EVERY_S / 2, 0.0], abs=1e-6)


@in_virtual_time
async def test_a_stop_before_the_start_does_nothing() -> None:
    instrumentation = Recorder()
    lag = LoopLag(clock(), instrumentation)
    lag.stop()
    await asyncio.sleep(10 * EVERY_S)

    assert instrumentation.lags == []

    lag.start()
    await asyncio.sleep(EVERY_S * 1.5)
    lag.stop()

    assert len(instrumentation.lags) == 1
