"""Requests whose bodies do not come, or not in time, through everything between a socket and an engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.engine.base import Route
from tests.support.harness import CHAT, COMPLETION, HttpHarness, key_line
from tests.support.time import clock, in_virtual_time, settle
from tests.support.transport import Connection

MOUNTED = "/v1/responses"
ALL = [CHAT, COMPLETION, MOUNTED]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """What vLLM's app would be: reads the body, then answers."""
    size = 0
    while (message := await receive())["type"] == "http.request":
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    body = orjson.dumps({"size": size})
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_harness(**options: Any) -> HttpHarness:
    made = HttpHarness(**options)
    made.engine.routes["POST", MOUNTED] = Route.USES_ENGINE
    made.engine.http = echo
    return made


def head(path: str, length: int, *lines: str) -> bytes:
    first = (f"POST {path} HTTP/1.1", "host: a", "content-type: application/json", f"content-length: {length}")
    return "\r\n".join((*first, *lines, "", "")).encode()


def only(connection: Connection) -> tuple[int, dict[str, Any], bytes]:
    """Status, JSON body and head of the one answer."""
    assert connection.received.count(b"HTTP/1.1 ") == 1
    status, body = connection.answer()
    return status, body, connection.received.partition(b"\r\n\r\n")[0].lower()


@pytest.mark.parametrize("path", ALL)
@in_virtual_time
async def test_a_body_that_does_not_arrive_is_a_complete_408(path: str) -> None:
    made = make_harness()
    connection = Connection(made.app, body_timeout_s=60.0)
    connection.feed(head(path, 1000, "x-request-id: mine"), b'{"stream"')
    await asyncio.sleep(9)

    assert connection.received == b""
    assert made.gate.slots_taken == 0, "no slot is taken while the body arrives"

    await asyncio.sleep(2)
    status, body, top = only(connection)

    assert (status, body["error"]["code"], body["error"]["retryable"]) == (408, "body_timeout", True)
    assert "server.min_body_bytes_per_s" in body["error"]["message"]
    assert b"x-request-id: mine" in top
    assert b"connection: close" in top
    assert connection.closed
    assert made.at_rest

    connection.hang_up()


@pytest.mark.parametrize("path", ALL)
@in_virtual_time
async def test_the_clients_own_deadline_holds_while_the_body_arrives(path: str) -> None:
    made = make_harness()
    connection = Connection(made.app, body_timeout_s=60.0, min_body_bytes_per_s=0)
    connection.feed(head(path, 1000, "x-request-timeout: 2"), b"{")
    began = clock().now()
    while not connection.received and clock().now() - began < 50:
        connection.feed(b" ")
        await asyncio.sleep(0.1)
    status, body, top = only(connection)

    assert clock().now() - began == pytest.approx(2, abs=0.2)
    assert (status, body["error"]["code"]) == (408, "deadline_exceeded")
    assert b"x-should-retry: false" in top
    assert connection.closed
    assert made.at_rest

    connection.hang_up()


@pytest.mark.parametrize("path", ALL)
@in_virtual_time
async def test_a_body_in_time_is_answered_as_usual(path: str) -> None:
    made = make_harness()
    connection = Connection(made.app)
    connection.feed(head(path, 20, "x-request-timeout: 100"))
    await asyncio.sleep(5)
    connection.feed(b'{"stream":')
    await asyncio.sleep(2)
    connection.feed(b"    true }")
    await settle()
    if path != MOUNTED:
        made.engine.runs[0].end("hello")
    await asyncio.sleep(1)

    assert connection.received.startswith(b"HTTP/1.1 200")
    assert not connection.closed

    connection.hang_up()
    await settle()


@pytest.mark.parametrize("path", ALL)
@in_virtual_time
async def test_a_client_that_leaves_while_sending_is_no_error(path: str) -> None:
    made = make_harness()
    connection = Connection(made.app)
    connection.feed(head(path, 1000), b"{")
    await settle()
    connection.hang_up()
    await settle()

    assert connection.received == b""
    assert made.at_rest


@pytest.mark.parametrize("path", ["/nowhere", "/livez", "/v1/streams/none/cancel", CHAT, MOUNTED])
@in_virtual_time
async def test_a_response_before_the_end_of_the_body_is_the_last(path: str, tmp_path: Path) -> None:
    """Not found, wrong method, no key: whatever comes behind the answer is neither kept nor taken for a request."""
    (tmp_path / "keys").write_text(key_line("someone", "secret"))
    made = make_harness(keys_file=tmp_path / "keys")
    connection = Connection(made.app)
    connection.feed(head(path, 10**6))
    await settle()
    status, _, top = only(connection)

    assert status in (401, 404, 405)
    assert b"connection: close" in top

    for _ in range(10):
        connection.feed(head("/livez", 0) * 100)
        await settle()

    assert connection.received.count(b"HTTP/1.1 ") == 1
    assert connection.protocol.cycle.body == b""
    assert not connection.protocol._held_bytes

    await asyncio.sleep(11)

    assert connection.gone


@in_virtual_time
async def test_a_body_that_grows_too_large_ends_its_connection() -> None:
    made = make_harness(max_body_bytes=1000)
    for wanted in (head(CHAT, 10**9), head(CHAT, 0).replace(b"content-length: 0", b"transfer-encoding: chunked")):
        connection = Connection(made.app)
        connection.feed(wanted, b"400\r\n" + b"b" * 1024 + b"\r\n")
        await settle()
        status, body, top = only(connection)

        assert (status, body["error"]["code"]) == (413, "body_too_large")
        assert b"connection: close" in top
        assert connection.closed

        connection.hang_up()


@in_virtual_time
async def test_arriving_bodies_hold_no_slots() -> None:
    made = make_harness(max_concurrent=1, max_waiting=0)
    slow = Connection(made.app)
    slow.feed(head(MOUNTED, 1000), b"{")
    await settle()
    other = Connection(made.app)
    other.feed(head(MOUNTED, 2) + b"{}")
    await settle()

    assert only(other)[:2] == (200, {"size": 2})

    slow.feed(b" " * 999)
    await settle()

    assert only(slow)[:2] == (200, {"size": 1000})

    for connection in (slow, other):
        connection.hang_up()


@in_virtual_time
async def test_too_many_bodies_at_once_are_a_503_with_retry_after() -> None:
    made = make_harness(max_body_bytes=10**7)
    first = Connection(made.app, max_total_body_bytes=10**6)
    first.feed(head(CHAT, 10**6), b"b" * 900_000)
    await settle()
    second = Connection(made.app, state=first.protocol.server_state)
    second.feed(head(CHAT, 10**6), b"b" * 900_000)
    await settle()
    status, body, top = only(first)

    assert (status, body["error"]["code"]) == (503, "overloaded")
    assert "server.max_total_body_bytes" in body["error"]["message"]
    assert b"retry-after: 1" in top
    assert made.instrumentation.rejections == ["bodies"]
    assert second.received == b""

    first.hang_up()
    second.hang_up()
    await settle()
