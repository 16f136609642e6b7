from __future__ import annotations

import asyncio

import pytest

from gateway.engine.base import RecoveryReport
from gateway.engine.supervisor import EXPECTED_START_S, Phase
from gateway.errors import Draining, EngineFailed, NotReady, SettingsError
from tests.support.engine import ScriptedEngine
from tests.support.supervised import Supervised
from tests.support.time import clock, in_virtual_time, settle


@in_virtual_time
async def test_a_start_is_not_waited_for() -> None:
    """It takes minutes; those who come meanwhile are shown so. A restart is waited for: streams hang on it."""

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(40)
        raise AssertionError

    supervised = Supervised(launch)
    with pytest.raises(NotReady):
        await supervised.supervisor.wait_ready()
    await supervised.stop()


@in_virtual_time
async def test_a_dead_engine_is_replaced_at_once_and_both_events_are_reported() -> None:
    supervised = Supervised()
    engine, supervisor = supervised.engine, supervised.supervisor
    engine.restart_takes_s = 20
    engine.recovery = RecoveryReport(continued=5, failed={"its grammar would start anew": 1})
    await settle()
    engine.death.set()
    await asyncio.sleep(5)

    assert (supervisor.phase, supervisor.is_ready, supervised.events) == (Phase.RESTARTING, False, ["ready", "lost"])
    assert supervisor.is_launching, "a process that ends now must not wait for the thread that builds the engine"
    with pytest.raises(EngineFailed, match="being restarted") as caught:
        _ = supervisor.engine
    assert caught.value.retryable

    await asyncio.sleep(15.1)

    assert (supervisor.phase, supervisor.engine) == (Phase.UP, engine)
    assert supervised.events == ["ready", "lost", engine.recovery]
    assert (engine.restarts, supervisor.is_launching) == (1, False)

    await supervised.stop()


@in_virtual_time
async def test_deaths_of_a_request_that_has_failed_for_them_are_not_counted() -> None:
    supervised = Supervised(max_restarts=3)
    engine = supervised.engine
    await settle()
    for explained in (0, 2, 0, 0, 3, 0, 0):
        engine.deaths_explained = explained
        engine.death.set()
        await settle()

        assert supervised.supervisor.phase is Phase.UP

    assert engine.lasts == [False, False, False, False, False, False, False]

    engine.death.set()
    await settle()

    assert engine.lasts[-1], "one more death would be the end"

    await supervised.stop()


@in_virtual_time
async def test_an_engine_that_dies_of_every_request_is_broken() -> None:
    supervised = Supervised(max_restarts=2)
    await settle()
    for _ in range(6):
        supervised.engine.deaths_explained = 2
        supervised.engine.death.set()
        await settle()

    assert supervised.supervisor.phase is Phase.FAILED
    with pytest.raises(SettingsError):
        await supervised.running

    await supervised.stop()


@in_virtual_time
async def test_wait_ready_waits_through_a_restart() -> None:
    supervised = Supervised()
    supervised.engine.restart_takes_s = 20
    await settle()

    assert await supervised.supervisor.wait_ready() is supervised.engine

    supervised.engine.death.set()
    await settle()
    loop = asyncio.get_running_loop()
    waiting = [loop.create_task(supervised.supervisor.wait_ready()) for _ in range(3)]
    await asyncio.sleep(10)
    waiting[0].cancel()
    await asyncio.sleep(9)

    assert [task.done() for task in waiting] == [True, False, False]

    await asyncio.sleep(2)

    assert [await task for task in waiting[1:]] == [supervised.engine] * 2, "and one who gave up was no hindrance"

    await supervised.stop()


@in_virtual_time
async def test_a_restart_that_fails_is_tried_again_slower_each_time() -> None:
    supervised = Supervised(max_restarts=100)
    began = clock().now()
    supervised.engine.restart_errors = [RuntimeError("no memory")] * 9
    await settle()
    supervised.engine.death.set()
    waited = [0, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    await asyncio.sleep(sum(waited) - 1)

    assert supervised.supervisor.phase is Phase.RESTARTING

    await asyncio.sleep(2)

    assert supervised.supervisor.phase is Phase.UP
    assert supervised.engine.restarts == 1
    assert supervised.events[:2] == ["ready", "lost"], "nothing is lost twice"
    assert clock().now() - began == pytest.approx(sum(waited) + 1, abs=0.1)

    await supervised.stop()


@in_virtual_time
async def test_one_death_after_another_is_answered_without_delay_as_long_as_engines_start() -> None:
    supervised = Supervised(max_restarts=3)
    await settle()
    for _ in range(3):
        supervised.engine.death.set()
        await settle()

        assert supervised.supervisor.phase is Phase.UP

    await supervised.stop()


@in_virtual_time
async def test_an_engine_that_dies_too_often_ends_the_process_with_a_failure() -> None:
    """vLLM's own server exits with 0 then, which restart policies take for a success."""
    supervised = Supervised(max_restarts=2, window_s=600)
    supervisor = supervised.supervisor
    for _ in range(2):
        await settle()
        supervised.engine.death.set()
        await settle()
    supervised.engine.death.set()
    with pytest.raises(SettingsError, match="died, after 2 restarts within 600 s") as caught:
        await supervised.running

    assert caught.value.exit_code == 1
    assert "supervisor.max_restarts" in str(caught.value)
    assert supervisor.phase is Phase.FAILED
    assert supervised.engine.given_up, "requests in flight must fail"
    with pytest.raises(EngineFailed) as refused:
        _ = supervisor.engine
    assert refused.value.retry_after_s == EXPECTED_START_S


@in_virtual_time
async def test_restarts_that_failed_count_too_and_waiting_callers_get_the_error() -> None:
    supervised = Supervised(max_restarts=2)
    supervised.engine.restart_errors = [RuntimeError("no memory")] * 5
    await settle()
    supervised.engine.death.set()
    await settle()
    waiting = asyncio.get_running_loop().create_task(supervised.supervisor.wait_ready())
    with pytest.raises(SettingsError, match="after 2 restarts"):
        await supervised.running
    with pytest.raises(EngineFailed, match="down"):
        await waiting


@in_virtual_time
async def test_without_restarts_the_first_death_is_the_last() -> None:
    supervised = Supervised(max_restarts=0)
    await settle()
    supervised.engine.death.set()
    with pytest.raises(SettingsError, match="after 0 restarts"):
        await supervised.running

    assert supervised.engine.restarts == 0
    assert supervised.events == ["ready", "lost"]


@in_virtual_time
async def test_restarts_of_long_ago_are_forgotten() -> None:
    supervised = Supervised(max_restarts=2, window_s=600)
    await settle()
    for _ in range(10):
        supervised.engine.death.set()
        await asyncio.sleep(301)

        assert supervised.supervisor.phase is Phase.UP

    assert supervised.engine.restarts == 10

    await supervised.stop()


@in_virtual_time
async def test_an_engine_that_cannot_start_is_a_failure_with_its_own_words() -> None:
    async def launch() -> ScriptedEngine:
        raise SettingsError("No such model.")

    supervised = Supervised(launch)
    with pytest.raises(SettingsError, match="No such model"):
        await supervised.running

    assert (supervised.supervisor.phase, supervised.events, supervised.supervisor.is_launching) == (
        Phase.FAILED,
        [],
        False,
    )


@in_virtual_time
async def test_stopping_is_safe_before_there_is_an_engine_and_twice() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(1)
        return engine

    supervised = Supervised(launch)
    await settle()
    await supervised.stop()
    await supervised.supervisor.stop()

    assert supervised.supervisor.phase is Phase.STOPPED
    assert not supervised.supervisor.is_ready
    assert engine.stops == 0


@in_virtual_time
async def test_a_stopped_engine_serves_no_more_and_is_stopped_once() -> None:
    supervised = Supervised()
    await settle()
    await supervised.stop()
    await supervised.supervisor.stop()

    assert supervised.engine.stops == 1
    with pytest.raises(Draining):
        _ = supervised.supervisor.engine


@in_virtual_time
async def test_stopping_during_a_restart_releases_waiting_callers() -> None:
    supervised = Supervised()
    supervised.engine.restart_takes_s = 1000
    await settle()
    supervised.engine.death.set()
    await settle()
    waiting = asyncio.get_running_loop().create_task(supervised.supervisor.wait_ready())
    await settle()
    await supervised.stop()
    with pytest.raises(Draining):
        await waiting

    assert supervised.engine.stops == 1
    assert supervised.supervisor.is_launching, "the thread that builds it goes on, and the process must not wait for it"


@in_virtual_time
async def test_without_a_limit_restarts_are_neither_counted_nor_delayed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Several workers that share an engine have one count, and one line in the log."""
    supervised = Supervised(max_restarts=None)
    supervised.engine.restart_errors = [RuntimeError("it died again")] * 5
    caplog.set_level("WARNING", "sluice")
    began = clock().now()
    await settle()
    for _ in range(10):
        supervised.engine.death.set()
        await settle()

    assert supervised.engine.restarts == 10
    assert clock().now() - began < 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    await supervised.stop()


@pytest.mark.parametrize("max_restarts", [None, 100])
@in_virtual_time
async def test_a_restart_may_raise_that_there_will_be_no_other_engine(max_restarts: int | None) -> None:
    supervised = Supervised(max_restarts=max_restarts)
    supervised.engine.restart_errors = [SettingsError("Too often.", exit_code=1)]
    await settle()
    supervised.engine.death.set()
    with pytest.raises(SettingsError, match="Too often"):
        await supervised.running

    assert supervised.supervisor.phase is Phase.FAILED
    assert supervised.engine.given_up
