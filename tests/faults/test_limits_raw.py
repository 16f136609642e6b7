"""Limits on the size and time of requests, from raw sockets; deadlines; cursors and stream ids of others; jumps of the
wall clock, which change nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import SYNTHETIC, Shared, Wanted
from tests.support.engine_probe import Probe
from tests.support.server import ASK, CHAT, MODEL, Json, Raw, Server, check_error, check_error_body, poll, request_bytes
from tests.support.stream_client import COMPLETIONS, Answer, Connection, ask, completion

pytestmark = pytest.mark.timeout(600)

HEADER_TIMEOUT_S = 2.0
BODY_TIMEOUT_S = 3.0
STEP_MS = 20
MAX_BODY_BYTES = 64 * 2**10
HEADER_LIMIT_BYTES = 32 * 2**10
FOREVER = 20_000
RESPONSES = "/v1/responses"
# Longer than the deadlines here, so that who waits hears nothing before.
KEEPALIVE_S = 0.8
EVERYONE = {**completion(0, 100, temperature=1), "n": int(SYNTHETIC["SLUICE_ADMISSION__MAX_CONCURRENT"])}
"""Asks for every slot. While a request runs, it waits, and no other overtakes it."""


@dataclass
class Target:
    server: Server
    probe: Probe


SERVERS = {
    "limits": Wanted(
        lambda _: {
            **SYNTHETIC,
            "SLUICE_SYNTHETIC__STEP_MS": str(STEP_MS),
            "SLUICE_SERVER__HEADER_TIMEOUT_S": str(HEADER_TIMEOUT_S),
            "SLUICE_STREAMS__KEEPALIVE_S": str(KEEPALIVE_S),
            "SLUICE_SERVER__MAX_BODY_BYTES": str(MAX_BODY_BYTES),
            "SLUICE_SERVER__BODY_TIMEOUT_S": str(BODY_TIMEOUT_S),
        },
        probe=True,
    )
}


@pytest.fixture(scope="module")
def target(fleet: dict[str, Shared]) -> Iterator[Target]:
    """One server for all tests here."""
    server, probe = fleet["limits"].server, fleet["limits"].probe
    assert probe is not None
    yield Target(server, probe)
    assert server.running(), server.stderr()
    assert "Traceback" not in server.stderr()


class Healthy:
    """A stream that is read all the time by a thread of its own, with its longest gap."""

    def __init__(self, port: int) -> None:
        self.longest_ms = 0.0
        self._raw = Raw(port, request_bytes(completion(0, FOREVER), COMPLETIONS))
        self._raw.read_until(b"data: {")
        self._last_s = time.monotonic()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while self._raw.sock.recv(65536):
            now_s = time.monotonic()
            self.longest_ms = max(self.longest_ms, 1000 * (now_s - self._last_s))
            self._last_s = now_s

    def fresh(self) -> None:
        """Measure from now on."""
        self.longest_ms = 0.0

    def close(self) -> None:
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


def test_what_is_sent_without_reading_costs_nothing(target: Target, figure: Any) -> None:
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


# Request options, cursors, ids.


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_an_option_that_is_not_a_number_is_a_400_that_names_its_header(target: Target, path: str) -> None:
    body = {"model": MODEL, "messages": ASK, "prompt": "x", "input": "x", "max_tokens": 2}
    garbage = ("abc", "-1", "nan", "inf", "1e999", "", "1 s", "0x10", "1,5")
    for header, values in {"X-Request-Timeout": (*garbage, "0"), "X-Stream-Resumable": garbage}.items():
        for value in values:
            response = target.server.post(path, headers={header: value}, **body)
            assert header in check_error(response, 400, param=header, code="invalid_request")["message"], value


def test_a_wrong_cursor_is_a_400_and_a_guessed_id_a_404(target: Target) -> None:
    server = target.server
    body = completion(3, 5)
    made = server.post(COMPLETIONS, headers={"X-Stream-Resumable": "30"}, **body)
    assert made.status_code == 200
    path = f"/v1/streams/{made.headers['x-stream-id']}"
    last = made.text.count("\nid: ") + 1
    for cursor in ("abc", "-1", "1.5", "9" * 30, str(last + 1), "\u0661"):
        for where in ("header", "query"):
            given: Json = {"headers": {"Last-Event-ID": cursor.encode()}} if where == "header" else {}
            response = server.http.get(path, params={"starting_after": cursor} if where == "query" else None, **given)
            assert response.status_code == 400, (cursor, where, response.text)
            assert response.json()["error"]["param"] in ("Last-Event-ID", "starting_after")
    assert server.http.get(path, headers={"Last-Event-ID": str(last)}).status_code == 204

    # Every neighbour of an id that exists, and as many that might.
    exists = made.headers["x-stream-id"]
    prefix, secret = exists.split("-")
    assert len(secret) * 4 >= 96
    guesses = [f"{prefix}-{secret[:i]}{int(secret[i], 16) ^ 1:x}{secret[i + 1 :]}" for i in range(len(secret))]
    guesses += [f"{prefix}-{secrets.token_hex(16)}" for _ in range(100)]
    guesses += [exists.upper(), exists[:-1], exists + "0", f"chatcmpl-{secret}", prefix, f"{prefix}-"]
    for guess in guesses:
        assert server.http.get(f"/v1/streams/{guess}").status_code == 404, guess
        assert server.http.delete(f"/v1/streams/{guess}").status_code == 404, guess


# Deadlines.


def kinds(tokens: int) -> dict[str, tuple[str, Json]]:
    """Path and body of a request of every kind that generates until its deadline."""
    usual = {"model": MODEL, "ignore_eos": True}
    chat = {**usual, "messages": ASK, "max_tokens": tokens}
    mounted = {**usual, "input": "Hello", "max_output_tokens": tokens}
    return {
        "stream": (CHAT, {**chat, "stream": True}),
        "formatted": (CHAT, {**chat, "stream": True, "logprobs": True}),
        "whole": (CHAT, chat),
        "mounted": (RESPONSES, mounted),
        "mounted stream": (RESPONSES, {**mounted, "stream": True}),
    }


KINDS = tuple(kinds(1))
TOKENS = iter(range(5_000, FOREVER))
TIMEOUT_S = 0.6
LATE_S = 0.5


def with_deadline(target: Target, kind: str, tokens: int) -> Answer:
    path, body = kinds(tokens)[kind]
    return asyncio.run(ask(target.server.port, body, path=path, headers={"X-Request-Timeout": str(TIMEOUT_S)}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_in_the_queue_is_a_408_and_the_engine_never_gets_the_request(target: Target, kind: str) -> None:
    server, number = target.server, next(TOKENS)
    with ExitStack() as stack:
        for body in (completion(0, FOREVER), EVERYONE):
            client = Raw(server.port, request_bytes(body, COMPLETIONS))
            stack.callback(client.close)
        poll("one waits", lambda: server.sample("sluice_requests_waiting") == 1, 10, 0.05)
        poll("one sits", lambda: server.sample("vllm:num_requests_running") == 1, 10, 0.05)
        prompts = server.sample("vllm:prompt_tokens_total")
        answer = with_deadline(target, kind, number)
        took_s = time.monotonic() - answer.sent_s
        assert server.sample("vllm:prompt_tokens_total") == prompts
        assert server.sample("sluice_requests_waiting") == 1

    assert answer.status == 408
    error = check_error_body(json.loads(answer.body), code="deadline_exceeded")
    assert "nothing was generated" in error["message"]
    assert error["retryable"] is False
    assert answer.headers["x-should-retry"] == "false"
    assert TIMEOUT_S - 0.05 < took_s < TIMEOUT_S + LATE_S
    assert number not in target.probe.of("add")
    server.wait_idle()


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_in_the_engine_frees_it_and_reports_the_tokens_spent(target: Target, kind: str, figure: Any) -> None:
    server, number = target.server, next(TOKENS)
    ended = server.ended("deadline_exceeded")
    answer = with_deadline(target, kind, number)
    took_s = time.monotonic() - answer.sent_s
    dropped = poll("the engine has dropped it", lambda: target.probe.of("drop").get(number), 5)
    (note,) = dropped
    figure(
        "cancellation",
        f"deadline to the engine's drop, {kind}",
        f"{1000 * (note.at_s - answer.sent_s - TIMEOUT_S):.0f} ms",
        "100 ms",
    )

    if kind in ("stream", "formatted"):
        assert (answer.status, answer.whole, answer.done, answer.finish) == (200, True, True, [])
        assert answer.text, "there was output before"
        assert answer.error is not None
        assert (answer.error["code"], answer.error["retryable"]) == ("deadline_exceeded", False)
        assert "completion tokens" in answer.error["message"]
    elif kind == "mounted stream":
        # vLLM's stream has begun and has no event for this: the connection is broken off.
        assert answer.status == 200
        assert b"output_text.delta" in answer.body
        assert b"response.completed" not in answer.body
        assert not answer.whole or b"deadline" in answer.body
    else:
        assert answer.status == 408
        error = check_error_body(json.loads(answer.body), code="deadline_exceeded")
        assert "completion tokens" in error["message"]
        assert (error["retryable"], answer.headers["x-should-retry"]) == (False, "false")
    assert TIMEOUT_S - 0.05 < took_s < TIMEOUT_S + LATE_S
    assert note.output_tokens > 0
    assert note.at_s - answer.sent_s - TIMEOUT_S < LATE_S
    poll("it is counted", lambda: server.ended("deadline_exceeded") == ended + 1, 2, 0.05)
    server.wait_idle()


# The wall clock.


def test_a_jump_of_the_wall_clock_changes_nothing(target: Target, figure: Any) -> None:
    """An hour forward, two back, under streams with a deadline and one in the queue. It is Python's wall clock that
    jumps, in the gateway and in the engine; timers of native code are the kernel's monotonic ones."""
    server, tokens = target.server, 3000 // STEP_MS
    server.wait_idle()
    bent: list[int] = []

    async def shown_s() -> float:
        answer = await ask(server.port, None, method="GET", path="/livez")
        return parsedate_to_datetime(answer.headers["date"]).timestamp()

    async def jump(hours: int) -> None:
        target.probe.set_clock(3600 * hours)
        while abs(await shown_s() - time.time() - 3600 * hours) > 5:
            await asyncio.sleep(0.05)
        bent.append(hours)

    async def comments(connection: Connection) -> None:
        await connection.head()
        while b": keep-alive" in await connection.chunk():
            connection.answer.arrivals_s.append(time.monotonic())

    async def run() -> tuple[list[Answer], Answer]:
        limits = {"X-Request-Timeout": "30", "X-Stream-Resumable": "30"}
        streams = [asyncio.create_task(ask(server.port, completion(i, tokens), headers=limits)) for i in range(20)]
        while server.sample("vllm:num_requests_running") < len(streams):
            await asyncio.sleep(0.02)
        waiting = await Connection.open(server.port, EVERYONE)
        reading = asyncio.create_task(comments(waiting))
        for hours in (1, -1):
            await jump(hours)
        assert not any(one.done() for one in streams), "they were to run through both jumps"
        answers = await asyncio.gather(*streams)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        waiting.writer.close()
        await jump(0)
        return answers, waiting.answer

    answers, waited = asyncio.run(run())
    inexact = [i for i, answer in enumerate(answers) if not answer.exact(i, tokens)]
    gaps = [b - a for a, b in zip(waited.arrivals_s, waited.arrivals_s[1:], strict=False)]
    figure("wall clock", "wall clock +1 h, -2 h under 20 streams: inexact or ended early", str(len(inexact)), "0")
    figure("wall clock", "longest time between keep-alives", f"{max(gaps):.2f} s", f"{KEEPALIVE_S:g} s")
    assert bent == [1, -1, 0]
    assert inexact == []
    assert max(gaps) < 2 * KEEPALIVE_S
    server.wait_idle()
