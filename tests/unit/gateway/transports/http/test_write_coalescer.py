"""Direct writes to many connections leave together, within one turn of the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.server import ServerState

from gateway.asgi import DIRECT_SINK
from gateway.transports.http.write_coalescer import MAX_COALESCED
from tests.support.connection_apps import GET
from tests.support.time import in_virtual_time, settle
from tests.support.transport import Connection


class Open:
    """An app in the middle of its answer; `line` is the sink in its scope."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.line = scope[DIRECT_SINK]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin", "more_body": True})
        await self.go_on.wait()
        self.line.flush()
        await send({"type": "http.response.body", "body": b"end"})


async def answering(count: int) -> tuple[list[Open], list[Connection]]:
    """Connections to one server, all in the middle of an answer."""
    apps = [Open() for _ in range(count)]
    state = ServerState()
    connections = [Connection(app, state=state) for app in apps]
    for connection in connections:
        connection.feed(GET)
    await settle()
    return apps, connections


@in_virtual_time
async def test_pieces_of_many_connections_leave_together_within_the_turn() -> None:
    apps, connections = await answering(3)
    for app in apps:
        assert app.line.is_writable()
        app.line.write(b"one")
    apps[0].line.write(b"more")

    assert not any(b"one" in connection.received for connection in connections)
    assert [connection.protocol.unsent_bytes for connection in connections] == [17, 8, 8]

    await asyncio.sleep(0)

    assert connections[0].received.endswith(b"3\r\none\r\n4\r\nmore\r\n")
    assert all(connection.received.endswith(b"3\r\none\r\n") for connection in connections[1:])
    assert not any(connection.protocol.unsent_bytes for connection in connections)

    apps[1].line.write(b"last")
    for app in apps:
        app.go_on.set()
    await settle()

    assert connections[1].received.endswith(b"4\r\nlast\r\n3\r\nend\r\n0\r\n\r\n"), "in order"
    assert not apps[1].line.is_writable()

    for connection in connections:
        connection.hang_up()


@in_virtual_time
async def test_the_first_of_very_many_connections_do_not_wait_for_all_others() -> None:
    apps, connections = await answering(MAX_COALESCED + 1)
    for app in apps:
        app.line.write(b"one")

    assert [b"one" in connection.received for connection in connections] == [True] * MAX_COALESCED + [False]

    await asyncio.sleep(0)

    assert b"one" in connections[-1].received

    for app, connection in zip(apps, connections, strict=True):
        app.go_on.set()
        connection.hang_up()
    await settle()


@in_virtual_time
async def test_a_piece_for_a_connection_that_ends_in_the_same_turn_is_dropped() -> None:
    apps, connections = await answering(2)
    for app in apps:
        app.line.write(b"one")
    apps[0].line.abort()
    connections[1].hang_up()
    await settle()

    assert not any(b"one" in connection.received for connection in connections)

    for app in apps:
        app.go_on.set()
    await settle()
