"""uvicorn as Sluice uses it: checks of all connections, and what the listeners serve."""

from __future__ import annotations

import asyncio
import threading
from unittest.mock import patch

from gateway.transports.http import uvicorn_server
from gateway.transports.http.body_budget import BodyBudget
from gateway.transports.http.uvicorn_server import UvicornServer, make_config
from tests.support.connection_apps import GET, App
from tests.support.time import in_real_time, in_virtual_time, settle
from tests.support.transport import Connection


@in_virtual_time
async def test_all_connections_are_checked_every_second() -> None:
    server = UvicornServer(make_config(App(), lifespan="off"))
    apps = [App(slow=True) for _ in range(2)]
    connections = [Connection(app) for app in apps]
    for connection in connections:
        connection.feed(GET)
        connection.transport.unsent_bytes = 7
    await settle()
    connections[0].transport.socket.retransmits, connections[0].transport.socket.silent_ms = 1, 18_000
    server.server_state.connections = {connection.protocol for connection in connections}

    assert server.unsent_bytes() == 14

    ticks = 0
    while not connections[0].transport.aborted and ticks < 1000:
        await server.on_tick(ticks)
        await asyncio.sleep(0.1)
        ticks += 1

    assert ticks == 11, "one check a second, and two that find the missing acknowledgement"
    assert not connections[1].transport.aborted

    for app in apps:
        app.go_on.set()
    await settle()
    connections[1].hang_up()


@in_real_time
async def test_free_memory_is_released_once_after_bodies_have_held_much() -> None:
    server, budget, released = UvicornServer(make_config(App(), lifespan="off")), BodyBudget(2**30), threading.Event()
    with (
        patch.object(uvicorn_server, "body_budget", lambda _: budget),
        patch.object(uvicorn_server.memory, "release_free", released.set),
    ):
        budget.used_bytes = budget.peak_bytes = uvicorn_server.LARGE_PEAK_BYTES + 1
        await server.on_tick(0)

        assert server._memory_task is None, "the bodies are still held"

        budget.used_bytes = 0
        await server.on_tick(0)
        assert server._memory_task is not None
        await server._memory_task

        assert released.is_set()
        assert budget.peak_bytes == 0
