from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.domain import Cause
from gateway.errors import ClientError
from gateway.streams.cancel_scope import ClientDisconnected
from gateway.transports.http.disconnect import DisconnectWatcher
from tests.support.time import in_virtual_time, settle


@in_virtual_time
async def test_the_watchers_scope_lets_other_errors_out() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(ClientError):
        async with DisconnectWatcher(receive):
            raise ClientError("No.")


@in_virtual_time
async def test_a_disarmed_watcher_lets_the_client_leave() -> None:
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async with DisconnectWatcher(receive) as watcher:
        watcher.disarm()
        gone.set()
        await settle()


@in_virtual_time
async def test_a_connected_client_can_be_disconnected_with_a_cause_even_when_disarmed() -> None:
    """The last write may be stuck, too."""

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def hold(watcher: DisconnectWatcher) -> None:
        async with watcher:
            watcher.disarm()
            await asyncio.Event().wait()

    watcher = DisconnectWatcher(receive)
    task = asyncio.get_running_loop().create_task(hold(watcher))
    await settle()
    watcher.disconnect(Cause.CLIENT_STALLED)
    with pytest.raises(ClientDisconnected) as caught:
        await task

    assert caught.value.cause is Cause.CLIENT_STALLED


@in_virtual_time
async def test_other_messages_than_the_disconnect_are_ignored() -> None:
    messages = [{"type": "http.request"}, {"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def stay() -> None:
        async with DisconnectWatcher(receive):
            await asyncio.Event().wait()

    with pytest.raises(ClientDisconnected):
        await stay()

    assert messages == []
