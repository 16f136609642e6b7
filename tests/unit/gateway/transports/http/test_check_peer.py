"""Once a second each connection is checked: a peer that has vanished or does not read is disconnected."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.transports.http import connection as connection_module
from tests.support.connection_apps import GET, App, halfway
from tests.support.time import in_virtual_time, settle
from tests.support.transport import Connection


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn")


async def look(connection: Connection, seconds: int) -> int:
    """Look after a silent peer every second; after how many it was found gone."""
    one = connection.transport.socket
    one.silent_ms = 0
    for second in range(1, seconds + 1):
        connection.protocol.check_peer()
        if connection.transport.aborted:
            return second - 1
        await asyncio.sleep(1)
        one.silent_ms += 1000
    return seconds


@pytest.mark.parametrize("sign", ["retransmits", "probes"])
@in_virtual_time
async def test_a_peer_that_owes_an_acknowledgement_for_too_long_is_disconnected(sign: str) -> None:
    app, connection = await halfway()

    assert await look(connection, 60) == 60, "a peer that owes nothing may be as silent as it likes"

    setattr(connection.transport.socket, sign, 1)

    assert await look(connection, 60) == connection_module.UNACKED_LIMIT_S + 1 == 19
    assert connection.transport.aborted

    app.go_on.set()
    await settle()


@in_virtual_time
async def test_an_acknowledgement_in_between_resets_the_time() -> None:
    app, connection = await halfway()
    connection.transport.socket.retransmits = 3
    for _ in range(5):
        assert await look(connection, 18) == 18

    assert not connection.transport.aborted

    app.go_on.set()
    await settle()
    connection.hang_up()


@in_virtual_time
async def test_a_retransmission_of_this_moment_proves_nothing() -> None:
    app, connection = await halfway()
    for _ in range(5):
        connection.transport.socket.probes, connection.transport.socket.silent_ms = 1, 60_000
        connection.protocol.check_peer()
        connection.transport.socket.probes = 0
        connection.protocol.check_peer()

    assert not connection.transport.aborted

    app.go_on.set()
    await settle()
    connection.hang_up()


@in_virtual_time
async def test_an_idle_connection_is_left_to_the_kernels_probes() -> None:
    connection = Connection(App())
    connection.transport.socket.retransmits = 1

    assert await look(connection, 60) == 60

    connection.hang_up()


@in_virtual_time
async def test_a_finished_response_that_is_not_read_does_not_keep_its_connection_for_ever() -> None:
    app = App()
    connection = Connection(app)
    connection.feed(GET)
    await settle()
    connection.transport.unsent_bytes = 100
    await look(connection, connection_module.UNREAD_LIMIT_S - 1)

    assert not connection.transport.aborted

    connection.transport.unsent_bytes = 0
    await look(connection, 1)
    connection.transport.unsent_bytes = 100
    await look(connection, connection_module.UNREAD_LIMIT_S - 1)

    assert not connection.transport.aborted, "it has read on meanwhile"

    await look(connection, 2)

    assert connection.transport.aborted
    connection.hang_up()
