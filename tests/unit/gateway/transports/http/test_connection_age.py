"""When a connection is closed: its age, and its time without a request."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.support.connection_apps import GET, App
from tests.support.time import in_virtual_time, settle
from tests.support.transport import Connection


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn")


@in_virtual_time
async def test_the_next_response_on_an_old_connection_closes_it() -> None:
    """And not cut: who reads the header sends its next request elsewhere, and no request is lost in between."""
    app = App(slow=True)
    connection = Connection(app, max_age_s=300.0, idle_timeout_s=1000.0)
    connection.feed(GET)
    await asyncio.sleep(5000)

    assert not connection.closed, "what is running may take its time"

    app.go_on.set()
    await settle()

    assert b"connection: close" not in connection.received
    assert not connection.closed

    connection.feed(GET)
    await settle()
    _, _, second = connection.received.partition(b"0\r\n\r\n")

    assert second.startswith(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")
    assert second.endswith(b"6\r\nbegin \r\n3\r\nend\r\n0\r\n\r\n")
    assert connection.closed


@pytest.mark.parametrize(("max_age_s", "at_s", "last"), [(300.0, 269, False), (300.0, 331, True), (0.0, 10**6, False)])
@in_virtual_time
async def test_a_connection_retires_at_its_maximum_age(max_age_s: float, at_s: float, last: bool) -> None:
    connection = Connection(App(), max_age_s=max_age_s, idle_timeout_s=2.0 * 10**6)
    connection.feed(GET)
    await asyncio.sleep(at_s)
    connection.feed(GET)
    await settle()

    assert connection.received.count(b"HTTP/1.1 200 OK") == 2
    assert (connection.received.count(b"connection: close"), connection.closed) == (int(last), last)

    connection.hang_up()


@in_virtual_time
async def test_simultaneous_connections_do_not_retire_together() -> None:
    """Or all clients of a replica would come to the others at once."""
    connections = [Connection(App(), max_age_s=300.0, idle_timeout_s=1000.0) for _ in range(40)]
    for connection in connections:
        connection.feed(GET)
    await asyncio.sleep(300)
    for connection in connections:
        connection.feed(GET)
    await settle()
    closed = sum(connection.closed for connection in connections)

    assert 5 < closed < 35

    for connection in connections:
        connection.hang_up()


@in_virtual_time
async def test_an_idle_connection_is_closed_after_the_idle_timeout() -> None:
    connection = Connection(App(), idle_timeout_s=75.0)
    connection.feed(GET)
    await asyncio.sleep(74)
    connection.feed(GET)
    await asyncio.sleep(74)

    assert not connection.closed

    await asyncio.sleep(2)

    assert connection.closed
    assert connection.received.count(b"HTTP/1.1 200 OK") == 2
