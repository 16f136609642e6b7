"""The engine of several workers under the real supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from gateway.engine.base import RecoveryReport
from gateway.engine.supervisor import Phase, Supervisor
from gateway.errors import EngineFailed, SettingsError
from gateway.multiprocess.messages import EngineAbandoned, EngineLost, EngineUp, ParentMessage, WorkerReady
from gateway.multiprocess.parent.engine_host import HostedEngine
from tests.support.time import clock, in_virtual_time, settle


@dataclass
class ScriptedProcesses:
    """Engine processes that do not exist; the test ends them."""

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


class Host:
    """A supervisor whose engine has two workers; the test reports when they are ready."""

    def __init__(self, *, max_restarts: int = 3) -> None:
        self.started: list[ScriptedProcesses] = []
        self.sent: list[tuple[int, ParentMessage]] = []
        self.failures = 0
        self.regained: list[RecoveryReport] = []
        self.engine = HostedEngine(self._start, lambda number, message: self.sent.append((number, message)), 2)
        self.supervisor: Supervisor[HostedEngine] = Supervisor(
            self.engine.launch,
            max_restarts=max_restarts,
            window_s=600,
            clock=clock(),
            on_lost=lambda: None,
            on_recovered=self.regained.append,
        )
        self.running = asyncio.get_running_loop().create_task(self.supervisor.run(lambda: None))

    async def _start(self) -> ScriptedProcesses:
        if self.failures:
            self.failures -= 1
            raise OSError("no memory")
        number = len(self.started)
        self.started.append(ScriptedProcesses(({"at": f"{number}a"}, {"at": f"{number}b"})))
        return self.started[-1]

    def ready(self, generation: int, **more: int) -> None:
        for number in (0, 1):
            self.engine.on_worker_ready(
                number, WorkerReady(generation, "m", True, more.get("continued", 0), {"grammar": number})
            )

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.supervisor.stop()


@in_virtual_time
async def test_it_is_up_when_every_worker_serves_on_it() -> None:
    host = Host()
    await settle()

    assert host.sent == [(0, EngineUp(1, {"at": "0a"}, [7])), (1, EngineUp(1, {"at": "0b"}, [7]))]

    host.engine.on_worker_ready(0, WorkerReady(1, "m", True))
    await settle()

    assert not host.supervisor.is_ready

    host.engine.on_worker_ready(1, WorkerReady(1, "m", True))
    await settle()

    assert host.supervisor.is_ready
    assert host.engine.ready_message.model == "m"

    await host.stop()

    assert host.started[0].ended


@in_virtual_time
async def test_a_death_is_sent_to_all_and_another_engine_started_with_other_addresses() -> None:
    host = Host()
    await settle()
    host.ready(1)
    await settle()
    host.sent.clear()
    host.started[0].death.set()
    await settle()

    assert host.sent == [
        (0, EngineLost(1)),
        (1, EngineLost(1)),
        (0, EngineUp(2, {"at": "1a"}, [7])),
        (1, EngineUp(2, {"at": "1b"}, [7])),
    ]
    assert host.started[0].ended
    assert host.started[0].killed, "one engine of several takes the others along, before they can report aborts"

    host.ready(1, continued=9)
    await settle()

    assert not host.supervisor.is_ready, "reports about the engine before are ignored"

    host.ready(2, continued=3)
    await settle()

    assert host.regained == [RecoveryReport(6, {"grammar": 1})]
    await host.stop()


@in_virtual_time
async def test_an_engine_that_does_not_answer_one_worker_is_killed_once() -> None:
    host = Host()
    await settle()
    host.ready(1)
    await settle()
    host.engine.on_unresponsive(1, 1)
    await settle()
    host.engine.on_unresponsive(0, 1)
    await settle()

    assert host.started[0].killed
    assert not host.started[1].killed
    await host.stop()


@in_virtual_time
async def test_an_engine_that_dies_before_all_workers_serve_on_it_is_replaced() -> None:
    host = Host()
    await settle()
    host.ready(1)
    await settle()
    host.started[0].death.set()
    await settle()
    host.engine.on_worker_ready(0, WorkerReady(2, "m", True))
    host.started[1].death.set()
    await asyncio.sleep(2)

    assert (0, EngineLost(2)) in host.sent
    assert host.started[1].ended

    host.ready(3)
    await settle()

    assert host.supervisor.is_ready
    await host.stop()


@in_virtual_time
async def test_when_it_dies_too_often_the_workers_get_engine_abandoned() -> None:
    host = Host(max_restarts=1)
    await settle()
    host.ready(1)
    await settle()
    host.started[0].death.set()
    await settle()
    host.failures = 1
    host.started[1].death.set()
    with pytest.raises(SettingsError, match="max_restarts"):
        await host.running

    assert isinstance(host.sent[-1][1], EngineAbandoned)
    assert host.supervisor.phase is Phase.FAILED
    await host.supervisor.stop()


@in_virtual_time
async def test_the_first_engine_must_live_until_it_is_used() -> None:
    host = Host()
    await settle()
    host.started[0].death.set()
    with pytest.raises(EngineFailed):
        await host.running

    await host.supervisor.stop()


@in_virtual_time
async def test_deaths_that_a_request_explains_do_not_count_as_restarts() -> None:
    """Workers report them when the next engine is up, so they count at the next death."""
    host = Host(max_restarts=1)
    await settle()
    host.ready(1)
    await settle()
    for generation, explained in ((2, 1), (3, 1), (4, 1)):
        host.started[-1].death.set()
        await settle()
        for number in (0, 1):
            share = explained if number == 0 else 0
            host.engine.on_worker_ready(number, WorkerReady(generation, "m", True, 0, {}, share, 2 * share))
        await settle()

        assert host.supervisor.phase is Phase.UP

    assert [recovery.expelled for recovery in host.regained] == [1, 1, 1]

    await host.stop()
