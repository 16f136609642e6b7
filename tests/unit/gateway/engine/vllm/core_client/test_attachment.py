"""A worker attaches to engine processes of a parent, over a host that the test plays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.engine.vllm.core_client.factory import EngineAttachment
from gateway.errors import EngineFailed
from tests.support.time import in_virtual_time


class Host:
    client_index, client_count = 1, 3

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.complaints = 0

    async def next_addresses(self) -> dict[str, str]:
        await asyncio.sleep(5)
        return {"input_address": "ipc://a"}

    async def wait_lost(self) -> None:
        await self.lost.wait()

    def report_unresponsive(self) -> None:
        self.complaints += 1


def attachment(host: Host) -> EngineAttachment:
    return EngineAttachment(host)  # type: ignore[arg-type]


@in_virtual_time
async def test_the_client_is_made_of_the_next_engines_addresses() -> None:
    async def make(arguments: dict[str, Any]) -> Any:
        return arguments

    made = await attachment(Host()).attach(make)

    assert made == {"client_addresses": {"input_address": "ipc://a"}, "client_count": 3, "client_index": 1}


@in_virtual_time
async def test_an_engine_that_dies_meanwhile_is_not_waited_for() -> None:
    host = Host()
    making = asyncio.Event()

    async def make(_: dict[str, Any]) -> None:
        making.set()
        await asyncio.Event().wait()

    attaching = asyncio.get_running_loop().create_task(attachment(host).attach(make))
    await making.wait()
    host.lost.set()

    with pytest.raises(EngineFailed):
        await attaching
    assert host.complaints == 0


@in_virtual_time
async def test_an_engine_that_this_client_cannot_use_is_reported() -> None:
    host = Host()

    async def make(_: dict[str, Any]) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await attachment(host).attach(make)
    assert host.complaints == 1


@in_virtual_time
async def test_the_front_end_is_the_number_of_its_processes_and_this_ones_index() -> None:
    assert attachment(Host()).front_end == (3, 1)
