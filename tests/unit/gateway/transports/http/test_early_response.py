"""Responses that start before the end of their request, and refusals: the client can read them, then it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from gateway.transports.http.lingering_close import LINGER_BYTES, LINGER_S
from tests.support.connection_apps import GET, App, Early, Refusing, post
from tests.support.time import clock, in_virtual_time, settle
from tests.support.transport import Connection


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn")


@pytest.mark.parametrize("status", [401, 404, 413])
@in_virtual_time
async def test_an_early_response_is_the_last_and_the_rest_of_the_body_is_dropped(status: int) -> None:
    app = Early(status)
    connection = Connection(app)
    connection.feed(post(10**6) + b"b" * 1000)
    await settle()

    assert connection.received.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in connection.received
    assert connection.transport.half_closed
    assert not connection.gone, "closing now would make the kernel take the answer back"

    for _ in range(20):
        connection.feed(b"b" * 100_000)
        await settle()

    assert len(connection.protocol.cycle.body) <= 1000
    assert connection.transport.reading

    await asyncio.sleep(LINGER_S)

    assert connection.gone
    assert app.calls == 1


@in_virtual_time
async def test_input_behind_an_early_response_is_never_taken_for_a_request() -> None:
    app = Early()
    connection = Connection(app)
    connection.feed(post(len(GET)))
    await settle()
    connection.feed(GET, GET)
    await settle()

    assert app.calls == 1
    assert connection.received.count(b"HTTP/1.1") == 1

    connection.hang_up()


@in_virtual_time
async def test_the_rest_of_a_body_is_read_for_a_limited_time() -> None:
    connection = Connection(Early())
    connection.feed(post(10**12))
    await settle()
    sent = 0
    while not connection.gone and sent < 10 * LINGER_BYTES:
        connection.feed(b"b" * 2**20)
        sent += 2**20

    assert LINGER_BYTES < sent < LINGER_BYTES + 2**22


@in_virtual_time
async def test_a_client_that_waits_for_100_continue_gets_its_response_and_an_end() -> None:
    connection = Connection(Early(401))
    connection.feed(post(1000, b"expect: 100-continue"))
    await settle()

    assert b"100 Continue" not in connection.received
    assert connection.received.startswith(b"HTTP/1.1 401")
    assert connection.closed

    connection.hang_up()


@in_virtual_time
async def test_an_early_response_to_a_request_without_a_body_keeps_the_connection() -> None:
    app = Early()
    connection = Connection(app)
    for _ in range(3):
        connection.feed(post(3) + b"abc")
        await settle()
        connection.feed(GET)
        await settle()

    assert app.calls == 6
    assert b"connection: close" not in connection.received
    assert not connection.closed

    connection.hang_up()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@in_virtual_time
async def test_a_request_with_connection_close_is_closed_at_once(version: bytes) -> None:
    connection = Connection(Early())
    connection.feed(b"POST /x HTTP/" + version + b"\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc")
    await settle()

    assert connection.gone
    assert not connection.transport.half_closed


@in_virtual_time
async def test_a_refusal_can_be_read_by_a_client_that_is_still_sending() -> None:
    connection = Connection(App(), max_header_bytes=2000)
    connection.feed(b"GET /x HTTP/1.1\r\nx: " + b"a" * 3000)
    await settle()

    assert connection.answer()[0] == 431
    assert not connection.gone

    connection.feed(b"a" * 1000)
    await asyncio.sleep(LINGER_S + 0.1)

    assert connection.gone
    assert connection.received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "sent", [b"", b"GET /x HTTP/1.1\r\nx: y\r\n", GET, post(1000) + b"b", b"GET /x HTTP/1.1\r\nx: " + b"a" * 40_000]
)
@in_virtual_time
async def test_the_memory_of_a_connection_is_free_when_it_is_lost(sent: bytes) -> None:
    """Not when garbage is collected, which happens rarely here."""
    app = Refusing()
    connection = Connection(app)
    connection.feed(sent)
    await settle()
    held = weakref.ref(connection.protocol)
    connection.hang_up()
    await settle()
    # With their stacks.
    app.errors.clear()
    gc.disable()
    try:
        # The tests' own transport keeps its protocol.
        connection.transport._protocol = connection.protocol = None  # type: ignore[assignment]
        await settle()

        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("sent", [b"GET /x HTTP/1.1\r\nx: y\r\n", post(1000) + b"b"])
@in_virtual_time
async def test_a_blocked_process_does_not_time_its_clients_out(sent: bytes) -> None:
    """A machine that was paused, a loop that was held up: what came meanwhile has not been looked at yet."""
    app = Refusing()
    connection = Connection(app, header_timeout_s=10.0)
    connection.feed(sent)
    await settle()
    clock().advance(60)
    await asyncio.sleep(0.1)

    assert connection.received == b""

    connection.feed(b"\r\n" if sent.startswith(b"GET") else b"b" * 999)
    await settle()

    assert connection.received.startswith(b"HTTP/1.1 200")

    connection.hang_up()


@in_virtual_time
async def test_after_a_blocked_process_clients_have_their_time_once_more() -> None:
    for sent in (b"GET /x HTTP/1.1\r\nx: y\r\n", post(1000) + b"b"):
        connection = Connection(Refusing(), header_timeout_s=10.0)
        connection.feed(sent)
        await settle()
        clock().advance(60)
        await asyncio.sleep(11)

        assert connection.received.startswith(b"HTTP/1.1 408")

        connection.hang_up()
