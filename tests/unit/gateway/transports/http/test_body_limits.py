"""Request bodies that do not arrive in time, or are too large together."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.server import ServerState

from gateway.transports.http.lingering_close import LINGER_S
from tests.support.asgi import read_body
from tests.support.connection_apps import CHUNKED, App, Refusing, post
from tests.support.time import clock, in_virtual_time, settle
from tests.support.transport import Connection


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn")


@in_virtual_time
async def test_a_body_that_is_not_complete_in_time_is_a_408_and_the_connection_ends() -> None:
    app = Refusing()
    connection = Connection(app, body_timeout_s=60.0, min_body_bytes_per_s=1)
    connection.feed(post(10**6))
    began = clock().now()
    while not connection.received and clock().now() - began < 200:
        connection.feed(b"b" * 100)
        await asyncio.sleep(1)

    assert clock().now() - began == pytest.approx(60, abs=1.1)
    assert connection.received.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in connection.received
    assert app.errors[0].code == "body_timeout"

    await asyncio.sleep(LINGER_S + 1)

    assert connection.gone


@pytest.mark.parametrize("body", [post(10**6), CHUNKED])
@in_virtual_time
async def test_a_body_that_arrives_too_slowly_is_a_408_long_before(body: bytes) -> None:
    app = Refusing()
    connection = Connection(app, body_timeout_s=60.0, min_body_bytes_per_s=1000)
    connection.feed(body, b"1\r\n" * (body is CHUNKED) + b"b")
    began = clock().now()
    while not connection.received and clock().now() - began < 200:
        await asyncio.sleep(1)

    assert clock().now() - began == pytest.approx(10, abs=1.1)
    assert app.errors[0].code == "body_timeout"

    connection.hang_up()


@in_virtual_time
async def test_a_body_in_time_does_not_affect_its_request() -> None:
    app = Refusing()
    connection = Connection(app, body_timeout_s=60.0, min_body_bytes_per_s=1000)
    for _ in range(3):
        connection.feed(post(550_000))
        for _ in range(55):
            connection.feed(b"b" * 10_000)
            await asyncio.sleep(1)
    await asyncio.sleep(70)

    assert [len(body) for body in app.bodies] == [550_000] * 3
    assert connection.received.count(b"HTTP/1.1 200 OK") == 3

    connection.hang_up()


@in_virtual_time
async def test_a_client_that_leaves_during_its_body_is_no_error() -> None:
    app = Refusing()
    connection = Connection(app)
    connection.feed(post(1000), b"b")
    await settle()
    connection.hang_up()
    await asyncio.sleep(100)

    assert [type(error).__name__ for error in app.errors] == ["ClientDisconnected"]


@in_virtual_time
async def test_an_application_that_does_not_respond_to_a_refused_body_is_not_waited_for() -> None:
    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)

    connection = Connection(deaf, body_timeout_s=5.0)
    connection.feed(post(1000), b"b")
    await asyncio.sleep(4)

    assert not connection.gone

    await asyncio.sleep(7)

    assert connection.transport.aborted


@in_virtual_time
async def test_the_bodies_of_all_connections_share_one_budget() -> None:
    app, state = Refusing(), ServerState()
    connections = [Connection(app, state=state, max_total_body_bytes=300_000) for _ in range(5)]
    for connection in connections[:3]:
        connection.feed(post(100_000), b"b" * 90_000)
        await settle()
    for connection in connections[3:]:
        connection.feed(post(100_000), b"b" * 90_000)
        await settle()

    assert [connection.received.split(b" ")[1:2] for connection in connections] == [[b"503"], [b"503"], [], [], []]
    assert {error.code for error in app.errors} == {"overloaded"}

    small = Connection(app, state=state)
    small.feed(post(5) + b"hello")
    for connection in connections[2:]:
        connection.feed(b"b" * 10_000)
    await settle()

    assert [len(body) for body in app.bodies] == [5, 100_000, 100_000, 100_000]
    assert connections[2].protocol._budget.used_bytes == 0, "what has been answered is not held"

    for connection in (*connections, small):
        connection.hang_up()


@in_virtual_time
async def test_a_body_is_not_counted_after_its_client_has_left_or_its_response_has_started() -> None:
    app, state = App(slow=True), ServerState()
    leaving = Connection(Refusing(), state=state)
    leaving.feed(post(200_000), b"b" * 100_000)
    answered = Connection(app, state=state)
    answered.feed(post(100_000) + b"b" * 100_000)
    await settle()
    budget = answered.protocol._budget

    assert budget.used_bytes == 200_000

    leaving.hang_up()
    await settle()
    answered.protocol.check_peer()

    assert budget.used_bytes == 0

    app.go_on.set()
    await settle()
    answered.hang_up()
