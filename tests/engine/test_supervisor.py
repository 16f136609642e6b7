from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.engine.supervisor import EXPECTED_START_S, Phase, Supervisor
from gateway.errors import Draining, EngineFailed, NotReady, SettingsError
from tests.support.engine import ScriptedEngine
from tests.support.time import clock, in_virtual_time, settle


def supervise(
    launch: Callable[[], Awaitable[ScriptedEngine]],
) -> tuple[Supervisor, asyncio.Task[None], list[str]]:
    began = clock().now()
    supervisor = Supervisor(launch, lambda: clock().now() - began)
    said: list[str] = []
    running = asyncio.get_running_loop().create_task(supervisor.run(lambda: said.append("ready")))
    return supervisor, running, said


@in_virtual_time
async def test_while_the_engine_starts_clients_are_told_how_long_it_will_take() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(40)
        return engine

    supervisor, running, said = supervise(launch)
    told = []
    for _ in range(2):
        with pytest.raises(NotReady) as caught:
            _ = supervisor.engine
        told.append(caught.value.retry_after_s)
        await asyncio.sleep(10)

    assert told == [EXPECTED_START_S, EXPECTED_START_S - 10]
    assert (supervisor.phase, supervisor.ready, said) == (Phase.STARTING, False, [])

    await asyncio.sleep(15)
    with pytest.raises(NotReady) as caught:
        _ = supervisor.engine

    assert caught.value.retry_after_s == 1, "a start that takes longer than expected is always nearly done"

    await asyncio.sleep(10)

    assert supervisor.engine is engine
    assert (supervisor.phase, supervisor.ready, said) == (Phase.UP, True, ["ready"])

    running.cancel()
    await supervisor.stop()

    assert engine.stops == 1


@in_virtual_time
async def test_an_engine_that_dies_ends_the_process_with_a_failure() -> None:
    """vLLM's own server exits with 0 then, which restart policies take for a success."""
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        return engine

    supervisor, running, _ = supervise(launch)
    await settle()
    engine.death.set()
    with pytest.raises(SettingsError) as caught:
        await running

    assert caught.value.exit_code == 1
    assert supervisor.phase is Phase.FAILED
    with pytest.raises(EngineFailed) as refused:
        _ = supervisor.engine
    assert refused.value.retry_after_s == EXPECTED_START_S


@in_virtual_time
async def test_an_engine_that_cannot_start_is_a_failure_with_its_own_words() -> None:
    async def launch() -> ScriptedEngine:
        raise SettingsError("No such model.")

    supervisor, running, said = supervise(launch)
    with pytest.raises(SettingsError, match="No such model"):
        await running

    assert (supervisor.phase, said) == (Phase.FAILED, [])


@in_virtual_time
async def test_stopping_is_safe_before_there_is_an_engine_and_twice() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(1)
        return engine

    supervisor, running, _ = supervise(launch)
    await settle()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await supervisor.stop()
    await supervisor.stop()

    assert supervisor.phase is Phase.STOPPED
    assert not supervisor.ready
    assert engine.stops == 0


@in_virtual_time
async def test_a_stopped_engine_serves_no_more_and_is_stopped_once() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        return engine

    supervisor, running, _ = supervise(launch)
    await settle()
    running.cancel()
    await supervisor.stop()
    await supervisor.stop()

    assert engine.stops == 1
    with pytest.raises(Draining):
        _ = supervisor.engine
