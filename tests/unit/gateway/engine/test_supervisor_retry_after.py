"""How long clients are asked to wait while there is no engine."""

from __future__ import annotations

import asyncio

import pytest

from gateway.engine.supervisor import EXPECTED_START_S, Phase
from gateway.errors import NotReady
from tests.support.engine import ScriptedEngine
from tests.support.supervised import Supervised
from tests.support.time import in_virtual_time, settle


@in_virtual_time
async def test_while_the_engine_starts_retry_after_is_the_time_that_is_left() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(40)
        return engine

    supervised = Supervised(launch)
    supervisor = supervised.supervisor
    shown = []
    for _ in range(2):
        with pytest.raises(NotReady) as caught:
            _ = supervisor.engine
        shown.append(caught.value.retry_after_s)
        await asyncio.sleep(10)

    assert shown == [EXPECTED_START_S, EXPECTED_START_S - 10]
    assert (supervisor.phase, supervisor.is_ready, supervised.events) == (Phase.STARTING, False, [])
    assert supervisor.is_launching

    await asyncio.sleep(15)
    with pytest.raises(NotReady) as caught:
        _ = supervisor.engine

    assert caught.value.retry_after_s == 9, "a guess, but clients must not use up their retries in a few seconds"

    await asyncio.sleep(10)

    assert supervisor.engine is engine
    assert (supervisor.phase, supervisor.is_ready, supervised.events) == (Phase.UP, True, ["ready"])
    assert not supervisor.is_launching

    await supervised.stop()

    assert engine.stops == 1


@in_virtual_time
async def test_retry_after_counts_down_from_the_time_of_the_last_start() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(12)
        return engine

    supervised = Supervised(launch)
    await asyncio.sleep(100)
    engine.restart_takes_s = 50
    shown = []
    for wait_s in (5, 40):
        engine.death.set()
        await asyncio.sleep(wait_s)
        shown.append(supervised.supervisor.not_ready_error().retry_after_s)

    assert shown == [7, 11]

    await asyncio.sleep(10)
    engine.death.set()
    await asyncio.sleep(5)

    assert supervised.supervisor.not_ready_error().retry_after_s == 45

    await supervised.stop()


@in_virtual_time
async def test_retry_after_grows_while_a_start_is_late_up_to_the_most_that_clients_obey() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(150)
        return engine

    supervised = Supervised(launch)
    shown = []
    for _ in range(14):
        await asyncio.sleep(10)
        shown.append(supervised.supervisor.not_ready_error().retry_after_s)

    assert shown == [20, 10, 8, 10, 12, 15, 18, 20, 22, 25, 28, 30, 32, 35]

    await asyncio.sleep(20)
    engine.restart_takes_s = 1000
    engine.death.set()
    await settle()

    assert supervised.supervisor.not_ready_error().retry_after_s == 120, "the last start took longer"

    await supervised.stop()
