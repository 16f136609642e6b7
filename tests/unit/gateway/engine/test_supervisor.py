from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.engine.base import RecoveryReport
from gateway.engine.supervisor import EXPECTED_START_S, Phase, Supervisor
from gateway.errors import Draining, EngineFailed, NotReady, SettingsError
from tests.support.engine import ScriptedEngine
from tests.support.time import clock, in_virtual_time, settle


class House:
    """A supervisor at work."""

    def __init__(
        self,
        launch: Callable[[], Awaitable[ScriptedEngine]] | None = None,
        *,
        max_restarts: int | None = 3,
        window_s: float = 600,
    ) -> None:
        self.engine = ScriptedEngine()
        self.said: list[str | RecoveryReport] = []
        self.supervisor = Supervisor(
            launch or self._launch,
            max_restarts=max_restarts,
            window_s=window_s,
            clock=clock(),
            on_lost=lambda: self.said.append("lost"),
            on_regained=self.said.append,
        )
        self.running = asyncio.get_running_loop().create_task(self.supervisor.run(lambda: self.said.append("ready")))

    async def _launch(self) -> ScriptedEngine:
        return self.engine

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.supervisor.stop()


@in_virtual_time
async def test_while_the_engine_starts_clients_are_told_how_long_it_will_take() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(40)
        return engine

    house = House(launch)
    supervisor = house.supervisor
    told = []
    for _ in range(2):
        with pytest.raises(NotReady) as caught:
            _ = supervisor.engine
        told.append(caught.value.retry_after_s)
        await asyncio.sleep(10)

    assert told == [EXPECTED_START_S, EXPECTED_START_S - 10]
    assert (supervisor.phase, supervisor.is_ready, house.said) == (Phase.STARTING, False, [])
    assert supervisor.is_launching

    await asyncio.sleep(15)
    with pytest.raises(NotReady) as caught:
        _ = supervisor.engine

    assert caught.value.retry_after_s == 9, "nobody knows, but clients must not use up their retries in a few seconds"

    await asyncio.sleep(10)

    assert supervisor.engine is engine
    assert (supervisor.phase, supervisor.is_ready, house.said) == (Phase.UP, True, ["ready"])
    assert not supervisor.is_launching

    await house.stop()

    assert engine.stops == 1


@in_virtual_time
async def test_a_start_is_not_waited_for() -> None:
    """It takes minutes; those who come meanwhile are told so. A restart is waited for: streams hang on it."""

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(40)
        raise AssertionError

    house = House(launch)
    with pytest.raises(NotReady):
        await house.supervisor.wait_ready()
    await house.stop()


@in_virtual_time
async def test_a_dead_engine_is_replaced_at_once_and_everybody_is_told() -> None:
    house = House()
    engine, supervisor = house.engine, house.supervisor
    engine.revive_takes_s = 20
    engine.recovery = RecoveryReport(continued=5, failed={"its grammar would start anew": 1})
    await settle()
    engine.death.set()
    await asyncio.sleep(5)

    assert (supervisor.phase, supervisor.is_ready, house.said) == (Phase.RESTARTING, False, ["ready", "lost"])
    assert supervisor.is_launching, "a process that ends now must not wait for the thread that builds the engine"
    with pytest.raises(EngineFailed, match="being restarted") as caught:
        _ = supervisor.engine
    assert caught.value.retryable

    await asyncio.sleep(15.1)

    assert (supervisor.phase, supervisor.engine) == (Phase.UP, engine)
    assert house.said == ["ready", "lost", engine.recovery]
    assert (engine.revivals, supervisor.is_launching) == (1, False)

    await house.stop()


@in_virtual_time
async def test_retry_after_counts_down_from_what_the_last_start_took() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(12)
        return engine

    house = House(launch)
    await asyncio.sleep(100)
    engine.revive_takes_s = 50
    told = []
    for wait_s in (5, 40):
        engine.death.set()
        await asyncio.sleep(wait_s)
        told.append(house.supervisor.not_ready_error().retry_after_s)

    assert told == [7, 11]

    await asyncio.sleep(10)
    engine.death.set()
    await asyncio.sleep(5)

    assert house.supervisor.not_ready_error().retry_after_s == 45

    await house.stop()


@in_virtual_time
async def test_what_clients_are_told_grows_while_a_start_is_late_and_is_never_more_than_they_heed() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(150)
        return engine

    house = House(launch)
    told = []
    for _ in range(14):
        await asyncio.sleep(10)
        told.append(house.supervisor.not_ready_error().retry_after_s)

    assert told == [20, 10, 8, 10, 12, 15, 18, 20, 22, 25, 28, 30, 32, 35]

    await asyncio.sleep(20)
    engine.revive_takes_s = 1000
    engine.death.set()
    await settle()

    assert house.supervisor.not_ready_error().retry_after_s == 120, "the last start took longer"

    await house.stop()


@in_virtual_time
async def test_deaths_of_a_request_that_has_failed_for_them_are_not_counted() -> None:
    house = House(max_restarts=3)
    engine = house.engine
    await settle()
    for explained in (0, 2, 0, 0, 3, 0, 0):
        engine.deaths_explained = explained
        engine.death.set()
        await settle()

        assert house.supervisor.phase is Phase.UP

    assert engine.lasts == [False, False, False, False, False, False, False]

    engine.death.set()
    await settle()

    assert engine.lasts[-1], "one more death would be the end"

    await house.stop()


@in_virtual_time
async def test_an_engine_that_dies_of_every_request_is_broken() -> None:
    house = House(max_restarts=2)
    await settle()
    for _ in range(6):
        house.engine.deaths_explained = 2
        house.engine.death.set()
        await settle()

    assert house.supervisor.phase is Phase.FAILED
    with pytest.raises(SettingsError):
        await house.running

    await house.stop()


@in_virtual_time
async def test_who_asks_for_the_engine_soon_waits_through_a_restart() -> None:
    house = House()
    house.engine.revive_takes_s = 20
    await settle()

    assert await house.supervisor.wait_ready() is house.engine

    house.engine.death.set()
    await settle()
    loop = asyncio.get_running_loop()
    asking = [loop.create_task(house.supervisor.wait_ready()) for _ in range(3)]
    await asyncio.sleep(10)
    asking[0].cancel()
    await asyncio.sleep(9)

    assert [task.done() for task in asking] == [True, False, False]

    await asyncio.sleep(2)

    assert [await task for task in asking[1:]] == [house.engine] * 2, "and one who gave up was no hindrance"

    await house.stop()


@in_virtual_time
async def test_a_restart_that_fails_is_tried_again_slower_each_time() -> None:
    house = House(max_restarts=100)
    began = clock().now()
    house.engine.revive_errors = [RuntimeError("no memory")] * 9
    await settle()
    house.engine.death.set()
    waited = [0, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    await asyncio.sleep(sum(waited) - 1)

    assert house.supervisor.phase is Phase.RESTARTING

    await asyncio.sleep(2)

    assert house.supervisor.phase is Phase.UP
    assert house.engine.revivals == 1
    assert house.said[:2] == ["ready", "lost"], "nothing is lost twice"
    assert clock().now() - began == pytest.approx(sum(waited) + 1, abs=0.1)

    await house.stop()


@in_virtual_time
async def test_one_death_after_another_is_answered_without_delay_as_long_as_engines_start() -> None:
    house = House(max_restarts=3)
    await settle()
    for _ in range(3):
        house.engine.death.set()
        await settle()

        assert house.supervisor.phase is Phase.UP

    await house.stop()


@in_virtual_time
async def test_an_engine_that_dies_too_often_ends_the_process_with_a_failure() -> None:
    """vLLM's own server exits with 0 then, which restart policies take for a success."""
    house = House(max_restarts=2, window_s=600)
    supervisor = house.supervisor
    for _ in range(2):
        await settle()
        house.engine.death.set()
        await settle()
    house.engine.death.set()
    with pytest.raises(SettingsError, match="died, after 2 restarts within 600 s") as caught:
        await house.running

    assert caught.value.exit_code == 1
    assert "supervisor.max_restarts" in str(caught.value)
    assert supervisor.phase is Phase.FAILED
    assert house.engine.given_up, "what is in flight must hear of it"
    with pytest.raises(EngineFailed) as refused:
        _ = supervisor.engine
    assert refused.value.retry_after_s == EXPECTED_START_S


@in_virtual_time
async def test_restarts_that_failed_count_too_and_those_who_wait_hear_the_end() -> None:
    house = House(max_restarts=2)
    house.engine.revive_errors = [RuntimeError("no memory")] * 5
    await settle()
    house.engine.death.set()
    await settle()
    asking = asyncio.get_running_loop().create_task(house.supervisor.wait_ready())
    with pytest.raises(SettingsError, match="after 2 restarts"):
        await house.running
    with pytest.raises(EngineFailed, match="down"):
        await asking


@in_virtual_time
async def test_without_restarts_the_first_death_is_the_last() -> None:
    house = House(max_restarts=0)
    await settle()
    house.engine.death.set()
    with pytest.raises(SettingsError, match="after 0 restarts"):
        await house.running

    assert house.engine.revivals == 0
    assert house.said == ["ready", "lost"]


@in_virtual_time
async def test_restarts_of_long_ago_are_forgotten() -> None:
    house = House(max_restarts=2, window_s=600)
    await settle()
    for _ in range(10):
        house.engine.death.set()
        await asyncio.sleep(301)

        assert house.supervisor.phase is Phase.UP

    assert house.engine.revivals == 10

    await house.stop()


@in_virtual_time
async def test_an_engine_that_cannot_start_is_a_failure_with_its_own_words() -> None:
    async def launch() -> ScriptedEngine:
        raise SettingsError("No such model.")

    house = House(launch)
    with pytest.raises(SettingsError, match="No such model"):
        await house.running

    assert (house.supervisor.phase, house.said, house.supervisor.is_launching) == (Phase.FAILED, [], False)


@in_virtual_time
async def test_stopping_is_safe_before_there_is_an_engine_and_twice() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(1)
        return engine

    house = House(launch)
    await settle()
    await house.stop()
    await house.supervisor.stop()

    assert house.supervisor.phase is Phase.STOPPED
    assert not house.supervisor.is_ready
    assert engine.stops == 0


@in_virtual_time
async def test_a_stopped_engine_serves_no_more_and_is_stopped_once() -> None:
    house = House()
    await settle()
    await house.stop()
    await house.supervisor.stop()

    assert house.engine.stops == 1
    with pytest.raises(Draining):
        _ = house.supervisor.engine


@in_virtual_time
async def test_stopping_during_a_restart_lets_those_who_wait_go() -> None:
    house = House()
    house.engine.revive_takes_s = 1000
    await settle()
    house.engine.death.set()
    await settle()
    asking = asyncio.get_running_loop().create_task(house.supervisor.wait_ready())
    await settle()
    await house.stop()
    with pytest.raises(Draining):
        await asking

    assert house.engine.stops == 1
    assert house.supervisor.is_launching, "the thread that builds it goes on, and the process must not wait for it"


@in_virtual_time
async def test_where_somebody_else_counts_restarts_are_neither_counted_nor_delayed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Several workers that share an engine have one count, and one line in the log."""
    house = House(max_restarts=None)
    house.engine.revive_errors = [RuntimeError("it died again")] * 5
    caplog.set_level("WARNING", "sluice")
    began = clock().now()
    await settle()
    for _ in range(10):
        house.engine.death.set()
        await settle()

    assert house.engine.revivals == 10
    assert clock().now() - began < 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    await house.stop()


@pytest.mark.parametrize("max_restarts", [None, 100])
@in_virtual_time
async def test_who_makes_the_engines_may_say_that_there_will_be_no_other(max_restarts: int | None) -> None:
    house = House(max_restarts=max_restarts)
    house.engine.revive_errors = [SettingsError("Too often.", exit_code=1)]
    await settle()
    house.engine.death.set()
    with pytest.raises(SettingsError, match="Too often"):
        await house.running

    assert house.supervisor.phase is Phase.FAILED
    assert house.engine.given_up
