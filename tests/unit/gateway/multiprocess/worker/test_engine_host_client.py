from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from gateway.errors import SettingsError
from gateway.multiprocess.messages import EngineAbandoned, EngineLost, EngineUnresponsive, EngineUp
from gateway.multiprocess.worker.engine_host_client import EngineHostClient
from tests.support.time import in_virtual_time, settle


class ScriptedClient:
    """A `SharedEngineClient`."""

    def __init__(self, stats_received_s: Mapping[int, float] | None = None, *, has_requests: bool = False) -> None:
        self.stats_received_s = stats_received_s or {}
        self.has_requests = has_requests
        self.losses = 0
        self.aborted: list[int] = []

    def mark_lost(self) -> None:
        self.losses += 1

    async def abort_client(self, number: int) -> None:
        self.aborted.append(number)


@in_virtual_time
async def test_a_worker_waits_for_addresses_and_never_gets_those_of_a_dead_engine() -> None:
    sent: list[EngineUnresponsive] = []
    host = EngineHostClient(1, 2, sent.append)
    waiting = asyncio.get_running_loop().create_task(host.next_addresses())
    await settle()
    host.on_engine_up(EngineUp(1, {"at": "1"}))
    host.on_engine_lost(EngineLost(1))
    await settle()

    assert not waiting.done()

    host.on_engine_up(EngineUp(2, {"at": "2"}))

    assert await waiting == {"at": "2"}

    client = ScriptedClient()
    host.attach(client)
    loss = asyncio.get_running_loop().create_task(host.wait_lost())
    host.report_unresponsive()
    await settle()

    assert (sent, client.losses, loss.done()) == ([EngineUnresponsive(2)], 0, False)

    host.on_engine_lost(EngineLost(2))
    await loss

    assert client.losses == 1


@in_virtual_time
async def test_a_client_that_attaches_to_a_dead_engine_is_marked_lost() -> None:
    host = EngineHostClient(0, 2, lambda _: None)
    host.on_engine_up(EngineUp(1, {}))
    await host.next_addresses()
    host.on_engine_lost(EngineLost(1))
    client = ScriptedClient()
    host.attach(client)

    assert client.losses == 1


@in_virtual_time
async def test_where_no_other_engine_will_be_started_a_worker_does_not_wait() -> None:
    host = EngineHostClient(0, 2, lambda _: None)
    waiting = asyncio.get_running_loop().create_task(host.next_addresses())
    await settle()
    host.on_engine_abandoned(EngineAbandoned("Too often."))
    with pytest.raises(SettingsError, match="Too often"):
        await waiting


@in_virtual_time
async def test_a_worker_has_the_pids_and_the_lock_file_of_the_engine_that_it_uses() -> None:
    host = EngineHostClient(0, 2, lambda _: None)
    host.on_engine_up(
        EngineUp(1, {"input_address": "ipc:///tmp/parent/a1", "output_address": "ipc:///tmp/parent/a2"}, [11, 12])
    )

    assert (list(host.pids), host.trial_lock) == ([], None)

    await host.next_addresses()

    assert (list(host.pids), str(host.trial_lock)) == ([11, 12], "/tmp/parent/trial.lock")
