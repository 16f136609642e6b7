"""The engine of several workers: the house's side under the real supervisor, and the worker's side of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from gateway.engine.base import RecoveryReport
from gateway.engine.supervisor import Phase, Supervisor
from gateway.errors import EngineFailed, SettingsError
from gateway.multiprocess.messages import (
    EngineAbandoned,
    EngineLost,
    EngineUnresponsive,
    EngineUp,
    ParentMessage,
    WorkerReady,
)
from gateway.multiprocess.parent.engine_host import HostedEngine
from gateway.multiprocess.worker.engine_host_client import EngineHostClient
from tests.support.time import clock, in_virtual_time, settle


@dataclass
class Cores:
    """Engine processes that do not exist."""

    addresses: tuple[Mapping[str, str], ...]
    killed: int = 0
    pids: tuple[int, ...] = (7,)
    ended: bool = False
    death: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_dead(self) -> None:
        await self.death.wait()

    def kill(self) -> None:
        self.killed += 1
        self.death.set()

    async def end(self) -> None:
        self.ended = True


class House:
    """A supervisor whose engine has two workers; they are ready when the test says so."""

    def __init__(self, *, max_restarts: int = 3) -> None:
        self.made: list[Cores] = []
        self.told: list[tuple[int, ParentMessage]] = []
        self.failures = 0
        self.regained: list[RecoveryReport] = []
        self.engines = HostedEngine(self._make, lambda number, message: self.told.append((number, message)), 2)
        self.supervisor: Supervisor[HostedEngine] = Supervisor(
            self.engines.launch,
            max_restarts=max_restarts,
            window_s=600,
            clock=clock(),
            on_lost=lambda: None,
            on_regained=self.regained.append,
        )
        self.running = asyncio.get_running_loop().create_task(self.supervisor.run(lambda: None))

    async def _make(self) -> Cores:
        if self.failures:
            self.failures -= 1
            raise OSError("no memory")
        number = len(self.made)
        self.made.append(Cores(({"at": f"{number}a"}, {"at": f"{number}b"})))
        return self.made[-1]

    def ready(self, generation: int, **more: int) -> None:
        for number in (0, 1):
            self.engines.on_worker_ready(
                number, WorkerReady(generation, "m", True, more.get("continued", 0), {"grammar": number})
            )

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.supervisor.stop()


@in_virtual_time
async def test_it_is_up_when_every_worker_serves_on_it() -> None:
    house = House()
    await settle()

    assert house.told == [(0, EngineUp(1, {"at": "0a"}, [7])), (1, EngineUp(1, {"at": "0b"}, [7]))]

    house.engines.on_worker_ready(0, WorkerReady(1, "m", True))
    await settle()

    assert not house.supervisor.is_ready

    house.engines.on_worker_ready(1, WorkerReady(1, "m", True))
    await settle()

    assert house.supervisor.is_ready
    assert house.engines.ready_message.model == "m"

    await house.stop()

    assert house.made[0].ended


@in_virtual_time
async def test_a_death_is_told_and_another_one_started_with_other_addresses() -> None:
    house = House()
    await settle()
    house.ready(1)
    await settle()
    house.told.clear()
    house.made[0].death.set()
    await settle()

    assert house.told == [
        (0, EngineLost(1)),
        (1, EngineLost(1)),
        (0, EngineUp(2, {"at": "1a"}, [7])),
        (1, EngineUp(2, {"at": "1b"}, [7])),
    ]
    assert house.made[0].ended
    assert house.made[0].killed, "one engine of several takes the others along, before they can say goodbye"

    house.ready(1, continued=9)
    await settle()

    assert not house.supervisor.is_ready, "what they say of the last one is history"

    house.ready(2, continued=3)
    await settle()

    assert house.regained == [RecoveryReport(6, {"grammar": 1})]
    await house.stop()


@in_virtual_time
async def test_an_engine_that_one_worker_does_not_hear_is_ended_once() -> None:
    house = House()
    await settle()
    house.ready(1)
    await settle()
    house.engines.on_unresponsive(1, 1)
    await settle()
    house.engines.on_unresponsive(0, 1)
    await settle()

    assert house.made[0].killed
    assert not house.made[1].killed
    await house.stop()


@in_virtual_time
async def test_one_that_dies_before_all_workers_have_met_it_is_replaced() -> None:
    house = House()
    await settle()
    house.ready(1)
    await settle()
    house.made[0].death.set()
    await settle()
    house.engines.on_worker_ready(0, WorkerReady(2, "m", True))
    house.made[1].death.set()
    await asyncio.sleep(2)

    assert (0, EngineLost(2)) in house.told
    assert house.made[1].ended

    house.ready(3)
    await settle()

    assert house.supervisor.is_ready
    await house.stop()


@in_virtual_time
async def test_when_it_dies_too_often_the_workers_are_told_that_there_will_be_no_other() -> None:
    house = House(max_restarts=1)
    await settle()
    house.ready(1)
    await settle()
    house.made[0].death.set()
    await settle()
    house.failures = 1
    house.made[1].death.set()
    with pytest.raises(SettingsError, match="max_restarts"):
        await house.running

    assert isinstance(house.told[-1][1], EngineAbandoned)
    assert house.supervisor.phase is Phase.FAILED
    await house.supervisor.stop()


@in_virtual_time
async def test_the_first_one_must_live_until_it_is_used() -> None:
    house = House()
    await settle()
    house.made[0].death.set()
    with pytest.raises(EngineFailed):
        await house.running

    await house.supervisor.stop()


class SharedEngineClient:
    """A worker's client of the engine."""

    stats_received_s: Mapping[int, float] = {}
    has_requests = False

    def __init__(self) -> None:
        self.losses = 0

    def mark_lost(self) -> None:
        self.losses += 1

    async def abort_client(self, number: int) -> None:
        """Nobody is there."""


@in_virtual_time
async def test_a_worker_waits_for_addresses_and_never_takes_those_of_a_dead_engine() -> None:
    said: list[EngineUnresponsive] = []
    tenancy = EngineHostClient(1, 2, said.append)
    asked = asyncio.get_running_loop().create_task(tenancy.next_addresses())
    await settle()
    tenancy.on_engine_up(EngineUp(1, {"at": "1"}))
    tenancy.on_engine_lost(EngineLost(1))
    await settle()

    assert not asked.done()

    tenancy.on_engine_up(EngineUp(2, {"at": "2"}))

    assert await asked == {"at": "2"}

    tenant = SharedEngineClient()
    tenancy.attach(tenant)
    loss = asyncio.get_running_loop().create_task(tenancy.wait_lost())
    tenancy.report_unresponsive()
    await settle()

    assert (said, tenant.losses, loss.done()) == ([EngineUnresponsive(2)], 0, False)

    tenancy.on_engine_lost(EngineLost(2))
    await loss

    assert tenant.losses == 1


@in_virtual_time
async def test_a_worker_that_meets_an_engine_too_late_hears_of_its_death() -> None:
    tenancy = EngineHostClient(0, 2, lambda _: None)
    tenancy.on_engine_up(EngineUp(1, {}))
    await tenancy.next_addresses()
    tenancy.on_engine_lost(EngineLost(1))
    tenant = SharedEngineClient()
    tenancy.attach(tenant)

    assert tenant.losses == 1


@in_virtual_time
async def test_where_there_will_be_no_other_a_worker_does_not_wait() -> None:
    tenancy = EngineHostClient(0, 2, lambda _: None)
    asked = asyncio.get_running_loop().create_task(tenancy.next_addresses())
    await settle()
    tenancy.on_engine_abandoned(EngineAbandoned("Too often."))
    with pytest.raises(SettingsError, match="Too often"):
        await asked


@in_virtual_time
async def test_deaths_that_a_workers_request_explains_are_reported_by_the_house() -> None:
    """Too late for the death itself: workers tell what they know when the next engine is up."""
    house = House(max_restarts=1)
    await settle()
    house.ready(1)
    await settle()
    for generation, explained in ((2, 0), (3, 1), (4, 1)):
        house.made[-1].death.set()
        await settle()
        for number in (0, 1):
            share = explained if number == 0 else 0
            house.engines.on_worker_ready(number, WorkerReady(generation, "m", True, 0, {}, share, 2 * share))
        await settle()
        if generation == 2:
            house.engines._explained = 2

        assert house.supervisor.phase is Phase.UP

    assert [recovery.expelled for recovery in house.regained] == [0, 1, 1]

    await house.stop()


@in_virtual_time
async def test_a_worker_knows_the_processes_and_where_all_workers_can_lock() -> None:
    tenancy = EngineHostClient(0, 2, lambda _: None)
    tenancy.on_engine_up(
        EngineUp(1, {"input_address": "ipc:///tmp/house/a1", "output_address": "ipc:///tmp/house/a2"}, [11, 12])
    )

    assert (list(tenancy.pids), tenancy.trial_lock) == ([], None)

    await tenancy.next_addresses()

    assert (list(tenancy.pids), str(tenancy.trial_lock)) == ([11, 12], "/tmp/house/trial.lock")
