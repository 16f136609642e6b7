"""Limits of one connection's input: pipelined requests, headers, trailers and the framing of chunks."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.transports.http.connection import FLOOD_LIMIT_S
from gateway.transports.http.request_limits import MAX_HELD_BYTES
from tests.support.connection_apps import CHUNKED, GET, LONG, App, Refusing, post
from tests.support.time import in_virtual_time, run, settle
from tests.support.transport import Connection


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn")


# Pipelining.


@in_virtual_time
async def test_pipelined_requests_begin_one_after_the_other_and_all_are_answered() -> None:
    app = App()
    connection = Connection(app)
    connection.feed(GET * 200)

    assert len(connection.protocol.tasks) == 1
    assert not connection.protocol.pipeline

    await settle()
    for _ in range(300):
        await asyncio.sleep(0)

    assert connection.received.count(b"HTTP/1.1 200 OK") == 200
    assert len(app.scopes) == 200

    connection.hang_up()


@in_virtual_time
async def test_pipelined_requests_with_bodies_are_separated_at_any_cut() -> None:
    requests = b"".join(post(number) + b"\r\n\r\n"[:number] + b"b" * (number - 4) for number in range(5, 20)) + GET
    requests += CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + GET + post(3) + b"end"
    wanted = [b"\r\n\r\n" + b"b" * (number - 4) for number in range(5, 20)] + [b"", b"abc", b"", b"end"]
    for packet in (1, 2, 3, 7, 50, 10_000):
        app = App()
        connection = Connection(app)
        connection.feed(*(requests[index : index + packet] for index in range(0, len(requests), packet)))
        for _ in range(300):
            await asyncio.sleep(0)

        assert app.bodies == wanted
        assert connection.received.count(b"HTTP/1.1 200 OK") == len(wanted)

        connection.hang_up()
        await settle()


@in_virtual_time
async def test_input_behind_a_running_response_is_held_up_to_a_limit_and_then_not_read() -> None:
    app = App(slow=True)
    connection = Connection(app)
    connection.feed(GET)
    await settle()
    while connection.transport.reading:
        connection.feed(LONG * 10)

    assert len(connection.protocol._held_bytes) <= MAX_HELD_BYTES + 10 * len(LONG)
    assert len(app.scopes) == 1

    app.go_on.set()
    for _ in range(1000):
        await asyncio.sleep(0)

    assert connection.transport.reading, "they have caught up"
    assert len(app.scopes) > 60

    connection.hang_up()


@in_virtual_time
async def test_a_client_that_sends_without_end_and_reads_nothing_is_disconnected_soon() -> None:
    app = App(slow=True)
    connection = Connection(app)
    connection.feed(GET)
    await settle()
    connection.feed(GET * 10_000)
    connection.transport.unsent_bytes = 20_000
    connection.protocol.pause_writing()
    for _ in range(FLOOD_LIMIT_S + 1):
        assert not connection.transport.aborted
        connection.protocol.check_peer()

    assert connection.transport.aborted

    app.go_on.set()
    await settle()


@in_virtual_time
async def test_an_incomplete_response_that_is_not_read_ends_its_connection() -> None:
    """Streams have a watch of their own, other answers have not."""
    app = App(slow=True)
    connection = Connection(app, stall_timeout_s=30.0)
    connection.feed(GET)
    await settle()
    connection.transport.unsent_bytes = 20_000
    connection.protocol.pause_writing()
    looks = 0
    while not connection.transport.aborted and looks < 100:
        connection.protocol.check_peer()
        looks += 1

    assert looks == 36

    app.go_on.set()
    await settle()


@in_virtual_time
async def test_a_response_that_is_read_slowly_is_not_cut_off() -> None:
    app = App()
    connection = Connection(app)
    connection.feed(GET)
    await settle()
    for left in range(200, 0, -1):
        connection.transport.unsent_bytes = left
        connection.protocol.check_peer()

    assert not connection.transport.aborted

    connection.hang_up()


@in_virtual_time
async def test_a_client_that_pipelines_and_leaves_cancels_its_running_request() -> None:
    app = App(slow=True)
    connection = Connection(app)
    connection.feed(CHUNKED + b"0\r\n\r\n" + GET * 3)
    await settle()
    running = connection.protocol._active_cycle

    assert not running.disconnected

    connection.hang_up()
    await settle()

    assert running.disconnected

    app.go_on.set()
    await settle()


@pytest.mark.parametrize("kind", [b"h2c", b"websocket", b"anything"])
@in_virtual_time
async def test_an_upgrade_is_ignored_and_the_connection_continues(kind: bytes) -> None:
    """Java's client offers h2c with its first request."""
    app = App()
    connection = Connection(app)
    wanted = b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: " + kind + b"\r\n\r\n"
    connection.feed(wanted, GET + post(3, b"connection: upgrade", b"upgrade: " + kind) + b"abc" + GET)
    for _ in range(100):
        await asyncio.sleep(0)

    assert app.bodies == [b"", b"", b"abc", b""]
    assert connection.received.count(b"HTTP/1.1 200 OK") == 4

    connection.hang_up()


@pytest.mark.parametrize("target", [b"CONNECT a:443", b"GET http://a", b"OPTIONS *", b"GET //", b"GET /%ff%00"])
@in_virtual_time
async def test_unusual_targets_get_a_response(target: bytes) -> None:
    connection = Connection(App())
    connection.feed(target + b" HTTP/1.1\r\nhost: a\r\n\r\n", b"x" * 100)
    await asyncio.sleep(30)

    assert connection.received.split(b" ")[1] in {b"200", b"400"}
    assert connection.gone


# Headers, trailers and the framing of chunks.


@in_virtual_time
async def test_many_header_lines_of_any_length_are_a_431() -> None:
    app = App()
    connection = Connection(app, max_headers=100)
    connection.feed(b"GET /x HTTP/1.1\r\n" + b"a:\r\n" * 101 + b"\r\n")
    await settle()
    status, body = connection.answer()

    assert (status, body["error"]["message"]) == (431, "The request has more than 100 headers.")
    assert app.scopes == []

    again = Connection(app, max_headers=100)
    again.feed(b"GET /x HTTP/1.1\r\n" + b"a:\r\n" * 100 + b"\r\n")
    await settle()

    assert again.received.startswith(b"HTTP/1.1 200")

    again.hang_up()


@in_virtual_time
async def test_trailers_are_read_and_dropped() -> None:
    """What no proxy has looked at must not become a header."""
    app = App()
    connection = Connection(app)
    connection.feed(CHUNKED, b"3\r\nabc\r\n0\r\nauthorization: Bearer x\r\nexpect: 100-continue\r\n\r\n", GET)
    for _ in range(30):
        await asyncio.sleep(0)

    assert app.bodies == [b"abc", b""]
    assert all(name != b"authorization" for name, _ in app.scopes[0]["headers"])
    assert not connection.closed

    connection.hang_up()


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        (b"0\r\n", b"x-trailer: a\r\n"),
        (b"0\r\nx: ", b"a" * 500),
        (b"0\r\n", b"a:\r\n" * 100),
        (b"1;", b"a" * 500),
        (b"1;a=", b"1;a=" * 100),
        (b"", b"0" * 500),
        (b"3\r\nabc\r\n0\r\n", b"x-trailer: a\r\n"),
    ],
)
@pytest.mark.parametrize("packet", [1, 4000])
@in_virtual_time
async def test_the_framing_of_a_body_is_limited(before: bytes, piece: bytes, packet: int) -> None:
    app = Refusing()
    connection = Connection(app, max_header_bytes=2000)
    connection.feed(CHUNKED + before)
    await settle()
    sent = 0
    while not connection.received and sent < 100_000:
        connection.feed(piece * packet)
        sent += len(piece) * packet
        await settle()

    assert sent <= max(4000, len(piece) * packet)
    await settle()
    assert connection.received.split(b" ")[1] in {b"431", b"400"}
    assert b"connection: close" in connection.received
    assert app.bodies == []

    await settle()
    connection.hang_up()


@in_virtual_time
async def test_many_small_chunks_are_one_body() -> None:
    app = App()
    connection = Connection(app, max_header_bytes=2000)
    connection.feed(CHUNKED + b"1\r\nx\r\n" * 10_000, b"0\r\n\r\n")
    for _ in range(30):
        await asyncio.sleep(0)

    assert app.bodies == [b"x" * 10_000]

    connection.hang_up()


@in_virtual_time
async def test_a_chunk_that_cannot_be_parsed_is_a_400() -> None:
    app = Refusing()
    connection = Connection(app)
    connection.feed(CHUNKED + b"3\r\nabc\r\n")
    await settle()
    connection.feed(b"not a size\r\n")
    await settle()

    assert connection.received.startswith(b"HTTP/1.1 400")
    assert app.errors[0].message == "This is not a valid HTTP request."
    assert connection.closed

    connection.hang_up()


UPGRADE = b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
WORDS = [
    GET,
    CHUNKED,
    UPGRADE,
    post(3),
    post(70_000),
    b"abc",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\nx: y\r\n\r\n",
    b"\r\n",
]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(WORDS) | st.binary(max_size=20), max_size=12), st.integers(1, 100_000))
def test_any_input_in_any_pieces_comes_to_an_end(words: list[bytes], packet: int) -> None:
    """No input causes an endless loop, and no connection stays open for longer than its limits."""

    async def run_packets() -> None:
        connection = Connection(Refusing(), header_timeout_s=10.0, body_timeout_s=20.0, idle_timeout_s=30.0)
        sent = b"".join(words)
        connection.feed(*(sent[index : index + packet] for index in range(0, len(sent), packet)))
        await asyncio.sleep(200)

        assert connection.gone
        statuses = [part[:3] for part in connection.received.split(b"HTTP/1.1 ")[1:]]
        assert set(statuses) <= {b"200", b"400", b"408", b"431", b"100"}

    run(run_packets(), debug=False)
