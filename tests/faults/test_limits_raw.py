"""Limits on the size and time of requests, from raw sockets."""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults import limited_server
from tests.faults.conftest import Shared
from tests.faults.limited_server import (
    BODY_TIMEOUT_S,
    FOREVER,
    HEADER_TIMEOUT_S,
    MAX_BODY_BYTES,
    RESPONSES,
    STEP_MS,
    Target,
    limited,
)
from tests.support.server import CHAT, Raw, Server, check_error_body, request_bytes
from tests.support.stream_client import COMPLETIONS, completion

pytestmark = pytest.mark.timeout(600)

HEADER_LIMIT_BYTES = 32 * 2**10


SERVERS = limited_server.SERVERS


@pytest.fixture(scope="module")
def target(fleet: dict[str, Shared]) -> Iterator[Target]:
    yield from limited(fleet)


class Healthy:
    """A stream that is read all the time by a thread of its own, with its longest gap."""

    def __init__(self, port: int) -> None:
        self.longest_ms = 0.0
        self._is_closing = False
        self._raw = Raw(port, request_bytes(completion(0, FOREVER), COMPLETIONS))
        self._raw.read_until(b"data: {")
        self._last_s = time.monotonic()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while self._raw.sock.recv(65536):
                now_s = time.monotonic()
                self.longest_ms = max(self.longest_ms, 1000 * (now_s - self._last_s))
                self._last_s = now_s
        except ConnectionResetError:
            # The server may reset a connection that was shut down here, but no other.
            if not self._is_closing:
                raise

    def fresh(self) -> None:
        """Measure from now on."""
        self.longest_ms = 0.0

    def close(self) -> None:
        self._is_closing = True
        self._raw.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._raw.close()


@contextmanager
def healthy(server: Server) -> Iterator[Healthy]:
    one = Healthy(server.port)
    try:
        yield one
    finally:
        one.close()


def resident_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


# Headers.


def head(*lines: str) -> bytes:
    return "\r\n".join(("GET /livez HTTP/1.1", "Host: faults", *lines)).encode()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(head(f"X-Long: {'x' * HEADER_LIMIT_BYTES}") + b"\r\n\r\n", id="one"),
        pytest.param(head(*(f"X-{i}: {'x' * 100}" for i in range(330))) + b"\r\n\r\n", id="many"),
        pytest.param(head("X-Long: ") + b"x" * (HEADER_LIMIT_BYTES + 1), id="without an end"),
        pytest.param(b"GET /" + b"x" * (HEADER_LIMIT_BYTES + 1) + b" HTTP/1.1\r\n\r\n", id="the path"),
    ],
)
def test_headers_beyond_the_limit_are_a_431(target: Target, sent: bytes) -> None:
    client = Raw(target.server.port, sent)
    try:
        top, _, body = client.read_all().partition(b"\r\n\r\n")
    finally:
        client.close()
    assert top.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in top
    check_error_body(json.loads(body), code="headers_too_large")


def test_headers_below_the_limit_are_served(target: Target) -> None:
    client = Raw(target.server.port, head("Connection: close", f"X-Long: {'x' * 32000}") + b"\r\n\r\n")
    try:
        assert client.read_all().startswith(b"HTTP/1.1 200 ")
    finally:
        client.close()


def flood(port: int, first: bytes, piece: bytes, total_bytes: int) -> int:
    """Send until the server breaks the connection, or everything; the bytes that the kernel took."""
    client = Raw(port, first)
    sent = 0
    try:
        while sent < total_bytes:
            sent += client.sock.send(piece)
    except OSError:
        pass
    finally:
        client.rst()
    return sent


def test_64_mib_of_headers_cost_nothing(target: Target, figure: Any) -> None:
    """From one connection that goes on for as long as it is let, and from a thousand that each send as much as is read
    before they are refused."""
    total = 64 * 2**20
    line = b"X-Flood: " + b"x" * 1000 + b"\r\n"
    shapes = {
        "lines": (head("A: b") + b"\r\n", line * 64),
        "one line": (head("X-Long: "), b"x" * 65536),
        "path": (b"GET /", b"x" * 65536),
    }

    def attack() -> int:
        sent = sum(flood(target.server.port, first, piece, total) for first, piece in shapes.values())
        for _ in range(total // 65536):
            sent += flood(target.server.port, *shapes["lines"], 65536)
        return sent

    with healthy(target.server) as one:
        # The first time, pools and caches grow to what the server uses anyway.
        attack()
        before = resident_bytes(target.server.pid)
        one.fresh()
        sent = attack()
        grown = resident_bytes(target.server.pid) - before
        figure("limits", f"RSS after {sent / 2**20:.0f} MiB of headers sent", f"{grown / 2**20:+.2f} MiB", "< 1 MiB")
        figure(
            "limits", "longest gap of a healthy stream under that", f"{one.longest_ms:.0f} ms", f"a step is {STEP_MS}"
        )
    assert sent >= total
    assert grown < 2**20


# Time.


def test_headers_that_do_not_come_to_an_end(target: Target, figure: Any) -> None:
    client = Raw(target.server.port, head("X-Half: "))
    began_s = time.monotonic()
    try:
        answer = client.read_all()
        took_s = time.monotonic() - began_s
    finally:
        client.close()
    figure("limits", "half a header: 408 after", f"{took_s:.2f} s", f"{HEADER_TIMEOUT_S:g} s")
    assert answer.startswith(b"HTTP/1.1 408 ")
    check_error_body(json.loads(answer.partition(b"\r\n\r\n")[2]), code="headers_timeout")
    assert HEADER_TIMEOUT_S - 0.1 < took_s < HEADER_TIMEOUT_S + 1


def test_silent_sockets_are_closed_in_time_and_disturb_no_stream(target: Target, full: bool, figure: Any) -> None:
    count = 5000 if full else 500
    closed_s: list[float] = []
    with ExitStack() as stack:
        one = stack.enter_context(healthy(target.server))
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(count):
            client = Raw(target.server.port)
            stack.callback(client.close)
            selector.register(client.sock, selectors.EVENT_READ, time.monotonic())
        while len(closed_s) < count:
            ready = selector.select(HEADER_TIMEOUT_S + 5)
            assert ready, f"{count - len(closed_s)} silent sockets are still open"
            for key, _ in ready:
                with suppress(ConnectionError):
                    assert key.fileobj.recv(1) == b""  # type: ignore[union-attr]
                closed_s.append(time.monotonic() - key.data)
                selector.unregister(key.fileobj)
        gap_ms = one.longest_ms
    figure(
        "limits",
        f"{count} silent sockets: the last closed after",
        f"{max(closed_s):.2f} s",
        f"{HEADER_TIMEOUT_S + 1} s",
    )
    figure("limits", "longest gap of a healthy stream meanwhile", f"{gap_ms:.0f} ms", f"a step is {STEP_MS}")
    assert min(closed_s) > HEADER_TIMEOUT_S - 0.1
    assert max(closed_s) < HEADER_TIMEOUT_S + 1
    # Far from what a person would notice; the machine may have other things to do.
    assert gap_ms < 500


# Bodies.


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_body_beyond_the_limit_is_a_413(target: Target, path: str) -> None:
    """Declared, it is not read; in chunks, only so far. Megabytes follow, and go nowhere."""
    top = f"POST {path} HTTP/1.1\r\nHost: faults\r\nContent-Type: application/json\r\nConnection: close\r\n"
    chunk = b"%x\r\n" % 16384 + b"x" * 16384 + b"\r\n"
    for sent in (
        f"{top}Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(),
        f"{top}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * (MAX_BODY_BYTES // 16384 + 1),
    ):
        client = Raw(target.server.port, sent)
        try:
            answer = client.read_until(b"}}")
            assert answer.startswith(b"HTTP/1.1 413 ")
            check_error_body(json.loads(answer.partition(b"\r\n\r\n")[2]), code="body_too_large")
        finally:
            client.close()


def test_a_body_that_never_ends_costs_nothing(target: Target, figure: Any) -> None:
    top = b"POST /v1/completions HTTP/1.1\r\nHost: faults\r\nContent-Type: application/json\r\n"
    top += b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n" % 65536 + b"x" * 65536 + b"\r\n"

    def attack() -> int:
        return sum(flood(target.server.port, top, chunk, 16 * 2**20) for _ in range(4))

    attack()
    before = resident_bytes(target.server.pid)
    sent = attack()
    grown = resident_bytes(target.server.pid) - before
    figure("limits", f"RSS after {sent / 2**20:.0f} MiB of chunked bodies sent", f"{grown / 2**20:+.2f} MiB", "< 1 MiB")
    assert grown < 2**20


def test_requests_sent_without_reading_cost_nothing(target: Target, figure: Any) -> None:
    """Requests ahead of their answers, trailers, chunk framing: all of it has to end somewhere."""
    top = b"POST /v1/completions HTTP/1.1\r\nHost: faults\r\nContent-Type: application/json\r\n"
    top += b"Transfer-Encoding: chunked\r\n\r\n"
    shapes = {
        "pipelined": (b"", b"GET / HTTP/1.1\r\nHost: faults\r\n\r\n" * 2000),
        "trailers": (top + b"0\r\n", b"X-Trailer: x\r\n" * 4000),
        "one trailer": (top + b"0\r\nX-Trailer: ", b"x" * 65536),
        "extension": (top + b"1;", b"x" * 65536),
        "digits": (top, b"0" * 65536),
        "behind a 404": (b"POST /nowhere HTTP/1.1\r\nHost: faults\r\nContent-Length: 999999999\r\n\r\n", b"x" * 65536),
    }
    total = 64 * 2**20
    with healthy(target.server) as one:
        flood(target.server.port, *shapes["pipelined"], total)
        before = resident_bytes(target.server.pid)
        one.fresh()
        sent = {name: flood(target.server.port, *shape, total) for name, shape in shapes.items()}
        grown = resident_bytes(target.server.pid) - before
        shown = f"RSS after {sum(sent.values()) / 2**20:.0f} MiB of {', '.join(shapes)}"
        figure("limits", shown, f"{grown / 2**20:+.2f} MiB", "< 8 MiB")
        figure(
            "limits", "longest gap of a healthy stream under that", f"{one.longest_ms:.0f} ms", f"a step is {STEP_MS}"
        )
    assert max(sent.values()) < total, sent
    assert grown < 8 * 2**20


def test_bodies_that_stop_end_in_time(target: Target, figure: Any) -> None:
    """All but the last bytes, and then a byte now and then."""
    top = b"POST /v1/chat/completions HTTP/1.1\r\nHost: faults\r\nContent-Type: application/json\r\n"
    top += b"Content-Length: %d\r\n\r\n" % MAX_BODY_BYTES
    clients = [Raw(target.server.port, top + b" " * (MAX_BODY_BYTES - 100)) for _ in range(20)]
    began_s = time.monotonic()
    try:
        for client in clients:
            client.sock.settimeout(0.05)
        left = list(clients)
        while left and time.monotonic() - began_s < 3 * BODY_TIMEOUT_S:
            for client in list(left):
                with suppress(TimeoutError):
                    client.sock.send(b" ")
                    client.read_until(b"}}")
                    left.remove(client)
        took_s = time.monotonic() - began_s
        assert left == []
        for client in clients:
            assert client.seen.startswith(b"HTTP/1.1 408 ")
            assert b"connection: close" in client.seen
            check_error_body(json.loads(client.seen.partition(b"\r\n\r\n")[2]), code="body_timeout")
    finally:
        for client in clients:
            client.close()
    figure("limits", "20 bodies that stop: the last 408 after", f"{took_s:.2f} s", f"{BODY_TIMEOUT_S:g} s")
    assert BODY_TIMEOUT_S - 0.1 < took_s < BODY_TIMEOUT_S + 3
