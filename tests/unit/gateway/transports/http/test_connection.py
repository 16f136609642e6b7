"""One HTTP connection: heads, time limits, age, and the options of its socket."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import asgi
from gateway.transports.http import middleware
from gateway.transports.http.connection import HttpConnection
from tests.support.connection_apps import GET, App, halfway
from tests.support.time import clock, in_virtual_time, run, settle
from tests.support.transport import Connection


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn")


@in_virtual_time
async def test_requests_on_one_connection_are_answered_one_after_the_other() -> None:
    app = App()
    connection = Connection(app)
    for _ in range(3):
        connection.feed(GET)
        await settle()

    assert connection.received.count(b"HTTP/1.1 200 OK") == 3
    assert not connection.closed

    connection.hang_up()


@in_virtual_time
async def test_a_request_is_parsed_byte_by_byte() -> None:
    app = App()
    connection = Connection(app)
    whole = b"POST /x HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"
    connection.feed(*(whole[index : index + 1] for index in range(len(whole))))
    await settle()

    assert app.bodies == [b"hello"]

    connection.hang_up()


@in_virtual_time
async def test_the_time_of_a_requests_first_byte_is_in_its_scope() -> None:
    """Also of the second one on a connection, whose first byte comes long after the connection."""
    app = App()
    connection = Connection(app)
    seen_s = []
    for _ in range(2):
        seen_s.append(clock().now())
        connection.feed(GET[:4])
        await asyncio.sleep(3)
        connection.feed(GET[4:])
        await asyncio.sleep(20)

    assert [scope[middleware.ARRIVAL] for scope in app.scopes] == pytest.approx(seen_s)
    assert asgi.ARRIVAL == middleware.ARRIVAL

    connection.hang_up()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /x HTTP/1.1\r\nx-big: " + b"a" * 3000 + b"\r\n\r\n",
        b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\n" + b"".join(b"x-%d: a\r\n" % number for number in range(400)) + b"\r\n",
    ],
)
@pytest.mark.parametrize("packet", [64, 100_000])
@in_virtual_time
async def test_headers_larger_than_the_limit_are_a_431(head: bytes, packet: int) -> None:
    app = App()
    connection = Connection(app, max_header_bytes=2000, max_headers=1000)
    connection.feed(*(head[index : index + packet] for index in range(0, len(head), packet)))
    await settle()
    status, body = connection.answer()

    assert (status, body["error"]["code"]) == (431, "headers_too_large")
    assert "2000 bytes" in body["error"]["message"]
    assert connection.closed
    assert app.scopes == []


@in_virtual_time
async def test_a_refusal_of_an_incomplete_request_has_its_endpoints_error_body() -> None:
    connection = Connection(App(), max_header_bytes=2000, max_headers=1000)
    connection.feed(b"POST /v1/messages?beta=true HTTP/1.1\r\nx-big: " + b"a" * 3000 + b"\r\n\r\n")
    await settle()
    status, body = connection.answer()

    assert (status, body["type"], body["error"]["type"]) == (431, "error", "request_too_large")


@pytest.mark.parametrize("target", [b"/metrics#x", b"/metrics?a=b#x", b"http://me/metrics#", b"#"])
@in_virtual_time
async def test_a_fragment_is_no_part_of_a_request(target: bytes) -> None:
    app = App()
    connection = Connection(app)
    connection.feed(b"GET " + target + b" HTTP/1.1\r\nhost: me\r\n\r\n")
    await settle()

    assert (connection.answer()[0], app.scopes) == (400, [])
    assert connection.closed


@in_virtual_time
async def test_a_header_that_never_ends_is_cut_off_at_the_limit() -> None:
    """The parser reports a header when it is complete, so one that never is would grow without limit."""
    connection = Connection(App(), max_header_bytes=2000)
    connection.feed(b"GET /x HTTP/1.1\r\nx-big: ")
    sent = 0
    while not connection.closed and sent < 100_000:
        connection.feed(b"a" * 500)
        sent += 500

    assert sent <= 2500
    assert connection.answer()[0] == 431


@in_virtual_time
async def test_a_large_body_in_the_packet_of_its_headers_is_no_large_header() -> None:
    app = App()
    connection = Connection(app, max_header_bytes=2000)
    connection.feed(b"POST /x HTTP/1.1\r\ncontent-length: 50000\r\n\r\n" + b"b" * 50_000)
    await settle()
    connection.feed(GET)
    await settle()

    assert [len(body) for body in app.bodies] == [50_000, 0]

    connection.hang_up()


@in_virtual_time
async def test_the_limit_counts_each_request_by_itself() -> None:
    app = App()
    connection = Connection(app, max_header_bytes=1000)
    for _ in range(5):
        connection.feed(b"GET /x HTTP/1.1\r\nx: " + b"a" * 700 + b"\r\n\r\n")
        await settle()

    assert len(app.scopes) == 5

    connection.hang_up()


@in_virtual_time
async def test_headers_that_do_not_come_to_an_end_in_time_are_a_408() -> None:
    """A byte now and then must not buy more time: that is how Slowloris holds a server's sockets."""
    connection = Connection(App(), header_timeout_s=10.0)
    connection.feed(b"GET /x HTTP/1.1\r\n")
    began = clock().now()
    while not connection.closed and clock().now() - began < 60:
        connection.feed(b"x: y\r\n")
        await asyncio.sleep(1)

    assert clock().now() - began == pytest.approx(10, abs=1.1)
    assert connection.answer()[0] == 408
    assert connection.answer()[1]["error"]["code"] == "headers_timeout"
    assert connection.answer()[1]["error"]["retryable"] is True


@in_virtual_time
async def test_a_second_request_has_the_same_deadline() -> None:
    connection = Connection(App(), header_timeout_s=10.0)
    connection.feed(GET)
    await asyncio.sleep(30)

    assert not connection.closed, "a connection at rest is no request that is late"

    connection.feed(b"GET /x HT")
    await asyncio.sleep(11)

    assert b"HTTP/1.1 408" in connection.received
    assert connection.closed


@in_virtual_time
async def test_a_connection_that_sends_nothing_is_closed_without_a_response() -> None:
    connection = Connection(App(), header_timeout_s=10.0)
    await asyncio.sleep(11)

    assert connection.closed
    assert connection.received == b""


@in_virtual_time
async def test_neither_a_body_nor_a_slow_answer_has_that_deadline() -> None:
    app = App(slow=True)
    connection = Connection(app, header_timeout_s=5.0)
    connection.feed(b"POST /x HTTP/1.1\r\ncontent-length: 5\r\n\r\n")
    await asyncio.sleep(9)
    connection.feed(b"hello")
    await asyncio.sleep(60)
    app.go_on.set()
    await settle()

    assert connection.received.startswith(b"HTTP/1.1 200")
    assert not connection.closed

    connection.hang_up()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n"])
@in_virtual_time
async def test_garbage_is_a_400_in_openais_shape(garbage: bytes) -> None:
    """Most often it is TLS sent to a plain port."""
    app = App()
    connection = Connection(app)
    connection.feed(garbage)
    await settle()
    status, body = connection.answer()

    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert b"content-type: application/json" in connection.received
    assert connection.closed
    assert app.scopes == []


@pytest.mark.parametrize("behind", [b"\r\n", b"GET /y HT"])
@in_virtual_time
async def test_a_running_response_is_not_cut_off_by_input_behind_its_request(behind: bytes) -> None:
    """A stray line break after a body (RFC 9112, section 2.2, lets clients) or half a pipelined request may wait
    longer than headers may take: the deadline must not answer in the middle of a stream."""
    app = App(slow=True)
    connection = Connection(app, header_timeout_s=10.0)
    connection.feed(b"POST /x HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello")
    await settle()
    connection.feed(behind)
    await asyncio.sleep(30)
    app.go_on.set()
    await settle()
    first, _, _ = connection.received.partition(b"0\r\n\r\n")

    assert first.endswith(b"6\r\nbegin \r\n3\r\nend\r\n")

    connection.hang_up()


@pytest.mark.parametrize("behind", [b"nonsense\r\n\r\n", b"GET /y HTTP/1.1\r\nx: " + b"a" * 3000])
@in_virtual_time
async def test_a_refusal_is_never_written_into_a_running_response(behind: bytes) -> None:
    """The client would take it for a part of the body. Cutting the connection is enough, if waiting is too much."""
    app, connection = await halfway(max_header_bytes=2000)
    connection.feed(behind)
    await settle()
    app.go_on.set()
    await settle()
    first, _, _ = connection.received.partition(b"0\r\n\r\n")

    assert first.count(b"HTTP/1.1") == 1

    connection.hang_up()


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=40) | st.sampled_from([b"\r\n", b"GET / HTTP/1.1\r\n", b"a: b\r\n", GET]), max_size=8)
)
def test_any_bytes_end_in_a_response_or_a_closed_connection(packets: list[bytes]) -> None:
    """Invariant: for any input the client gets a well-formed status, and no connection stays open for ever."""

    async def run_packets() -> None:
        connection = Connection(App(), header_timeout_s=10.0)
        connection.feed(*packets)
        await asyncio.sleep(100)

        assert connection.closed
        assert connection.received == b"" or connection.received.split(b" ")[1] in {b"200", b"400", b"408", b"431"}

    run(run_packets(), debug=False)


@in_virtual_time
async def test_a_response_left_incomplete_breaks_the_connection_without_its_final_chunk() -> None:
    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    connection = Connection(half)
    connection.feed(GET)
    await settle()

    assert connection.received.endswith(b"4\r\nhalf\r\n")
    assert connection.closed


@in_virtual_time
async def test_an_accepted_socket_gets_its_options_and_a_bounded_buffer() -> None:
    connection = Connection(App())

    assert connection.transport.socket.options[socket.SOL_SOCKET, socket.SO_KEEPALIVE] == 1
    assert connection.transport.high_water == 16 * 2**10
    connection.transport.unsent_bytes = 7

    assert connection.protocol.unsent_bytes == 7

    connection.hang_up()


@in_virtual_time
async def test_a_socket_that_is_not_tcp_gets_no_options() -> None:
    connection = Connection(App(), family=socket.AF_UNIX)

    assert connection.transport.socket.options == {}

    connection.hang_up()


@in_virtual_time
async def test_an_app_can_abort_its_connection() -> None:
    app, connection = await halfway()
    app.scopes[0][asgi.DIRECT_SINK].abort()
    app.go_on.set()
    await settle()

    assert connection.transport.aborted
    assert connection.transport.socket.options[socket.SOL_SOCKET, socket.SO_LINGER] == struct.pack("ii", 1, 0)
    assert not connection.received.endswith(b"0\r\n\r\n")


def test_limits_are_those_of_the_design() -> None:
    limits = (
        HttpConnection.max_header_bytes,
        HttpConnection.header_timeout_s,
        HttpConnection.idle_timeout_s,
        HttpConnection.max_age_s,
    )

    assert limits == (32 * 2**10, 10.0, 75.0, 300.0)
