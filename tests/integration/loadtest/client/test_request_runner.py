"""Requests over real sockets: times, timeouts, ends of connections, and clients that abort, stall, read slowly or
resume."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter_ns

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from loadtest.client import tls
from loadtest.client.connection import Address
from loadtest.client.pool import ConnectionPool
from loadtest.client.request_runner import RequestRunner
from loadtest.measure.record import ReadMode, Record
from loadtest.measure.result import ErrorKind
from loadtest.scenario.model import Timeouts
from loadtest.scenario.workload import PreparedRequest, ReadPlan
from tests.integration.loadtest.raw_server import GOOD, HEAD, LAST, Script, Scripted, framed
from tests.unit.loadtest.requests import REQUEST, chunk, ending, event

Serve = Callable[..., Scripted]
SHORT = Timeouts(connect_s=1, first_byte_s=0.2, idle_s=0.2, deadline_s=1)
LONG = Timeouts(connect_s=5, first_byte_s=10, idle_s=10, deadline_s=20)


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Scripted] = []

    def start(script: Script, tls: ssl.SSLContext | None = None) -> Scripted:
        servers.append(Scripted(script, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def pool_of(url: str, verify: bool = True) -> ConnectionPool:
    return ConnectionPool(Address.from_url(url, tls.make_ssl_context(verify)), 2.0)


def send(
    url: str, plan: ReadPlan | None = None, timeouts: Timeouts = LONG, pool: ConnectionPool | None = None
) -> Record:
    own_pool = pool or pool_of(url)
    runner = RequestRunner(own_pool, timeouts, perf_counter_ns() + 30_000_000_000)
    request: PreparedRequest = replace(REQUEST, read_plan=plan or ReadPlan(), body=b'{"stream": true}')
    record, _ = runner.run(request, perf_counter_ns(), lambda _: None)
    if pool is None:
        own_pool.close()
    return record


def good(sock: socket.socket, _: bytes) -> None:
    sock.sendall(GOOD)


def test_a_request_and_its_response(serve: Serve) -> None:
    server = serve(good)
    record = send(server.url)

    assert record.error is None, record.detail
    assert (record.status, record.output_tokens, record.request_id) == (200, 2, "r-9")
    assert record.intended_ns <= record.started_ns <= record.sent_ns < record.first_byte_ns <= record.content_ns[0]
    head = server.requests[0].partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"post /v1/chat/completions http/1.1\r\nhost: 127.0.0.1:")
    assert b"accept: text/event-stream" in head


def test_a_connection_is_reused(serve: Serve) -> None:
    server = serve(good)
    pool = pool_of(server.url)
    for _ in range(3):
        assert send(server.url, pool=pool).is_ok
    pool.close()

    assert server.connections == 1


def test_a_connection_that_the_server_closed_is_not_reused(serve: Serve) -> None:
    def once(sock: socket.socket, request: bytes) -> None:
        good(sock, request)
        sock.shutdown(socket.SHUT_RDWR)

    server = serve(once)
    pool = pool_of(server.url)
    assert send(server.url, pool=pool).is_ok
    time.sleep(0.05)
    assert send(server.url, pool=pool).is_ok
    pool.close()

    assert server.connections == 2


def test_gaps_are_those_of_the_server(serve: Serve) -> None:
    """Accuracy, not speed: the measured gaps equal the server's waits, to 15 ms on a shared machine."""

    def slowly(sock: socket.socket, _: bytes) -> None:
        time.sleep(0.1)
        sock.sendall(HEAD + framed(event(chunk("a"))))
        for text in ("b", "c"):
            time.sleep(0.05)
            sock.sendall(framed(event(chunk(text))))
        sock.sendall(framed(ending(3)) + LAST)

    record = send(serve(slowly).url)
    first, second, third = record.content_ns

    assert (first - record.sent_ns) / 1e6 == pytest.approx(100, abs=15)
    assert (second - first) / 1e6 == pytest.approx(50, abs=15)
    assert (third - second) / 1e6 == pytest.approx(50, abs=15)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def sending(*parts: bytes, then: Callable[[socket.socket], object]) -> Script:
    def script(sock: socket.socket, _: bytes) -> None:
        for part in parts:
            sock.sendall(part)
        # The client reads the bytes sent before the next step.
        time.sleep(0.05)
        then(sock)

    return script


def close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


HALF = HEAD + framed(event(chunk("a")))
ENDS: list[tuple[str, Script, ErrorKind]] = [
    ("closed", sending(HALF, then=close), ErrorKind.TRUNCATED),
    ("reset", sending(HALF, then=reset), ErrorKind.RESET),
    ("reset at once", sending(then=reset), ErrorKind.RESET),
    ("silent", sending(then=lambda _: time.sleep(0.5)), ErrorKind.TIMEOUT_FIRST),
    ("stops", sending(HALF, then=lambda _: time.sleep(0.5)), ErrorKind.TIMEOUT_IDLE),
    ("no HTTP", sending(b"hello\r\n\r\n", then=close), ErrorKind.TRUNCATED),
]


@pytest.mark.parametrize(("script", "kind"), [end[1:] for end in ENDS], ids=[end[0] for end in ENDS])
def test_each_end_of_a_response_has_its_error_kind(serve: Serve, script: Script, kind: ErrorKind) -> None:
    assert send(serve(script).url, timeouts=SHORT).error is kind


def test_a_deadline_ends_an_endless_stream(serve: Serve) -> None:
    def forever(sock: socket.socket, _: bytes) -> None:
        sock.sendall(HEAD)
        while True:
            sock.sendall(framed(event(chunk("a"))))
            time.sleep(0.05)

    record = send(serve(forever).url, timeouts=SHORT)

    assert record.error is ErrorKind.DEADLINE
    assert (record.ended_ns - record.sent_ns) / 1e9 == pytest.approx(1, abs=0.2)


def test_no_server_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    assert send(f"http://127.0.0.1:{port}").error is ErrorKind.CONNECT


def test_a_server_without_tls(serve: Serve) -> None:
    server = serve(sending(b"what?", then=close))

    assert send(server.url.replace("http", "https")).error is ErrorKind.TLS


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's side of TLS, with a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    pem = made.add_extension(place, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def test_a_tls_connection_is_reused(serve: Serve, certified: ssl.SSLContext) -> None:
    server = serve(trickle(30, 0.001), certified)
    pool = pool_of(server.url, verify=False)
    records = [send(server.url, pool=pool) for _ in range(3)]
    pool.close()

    assert [(record.error, record.output_tokens) for record in records] == [(None, 30)] * 3
    assert server.connections == 1


def test_an_unsigned_certificate_is_rejected(serve: Serve, certified: ssl.SSLContext) -> None:
    record = send(serve(good, certified).url)

    assert record.error is ErrorKind.TLS
    assert "certificate" in record.detail


def test_a_body_without_length_ends_with_its_connection(serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

    assert send(serve(sending(head + event(chunk("a")) + ending(1), then=close)).url).error is None


# Clients that do not simply read.


def trickle(count: int, every_s: float = 0.01) -> Script:
    def script(sock: socket.socket, _: bytes) -> None:
        sock.sendall(HEAD)
        for number in range(count):
            sock.sendall(framed(event(chunk(str(number)))))
            time.sleep(every_s)
        sock.sendall(framed(ending(count)) + LAST)

    return script


def test_a_client_aborts_after_a_number_of_tokens(serve: Serve) -> None:
    server = serve(trickle(50))
    record = send(server.url, ReadPlan(ReadMode.CANCEL, after_events=3))

    assert record.left_by_plan
    assert record.error is None
    assert len(record.content_ns) == 3


def test_a_client_aborts_after_a_time(serve: Serve) -> None:
    record = send(serve(trickle(50)).url, ReadPlan(ReadMode.CANCEL, abort_after_s=0.1))

    assert record.left_by_plan
    assert (record.ended_ns - record.sent_ns) / 1e6 == pytest.approx(100, abs=30)


def test_an_aborted_connection_is_not_reused(serve: Serve) -> None:
    server = serve(trickle(50))
    pool = pool_of(server.url)
    for _ in range(2):
        send(server.url, ReadPlan(ReadMode.CANCEL, after_events=1), pool=pool)
    pool.close()

    assert server.connections == 2


def test_a_stalled_reader_pauses_and_then_reads_the_rest(serve: Serve) -> None:
    plan = ReadPlan(ReadMode.STALL, after_events=3, pause_s=0.5)
    # The pause is longer than the idle timeout, which counts the server's silence only.
    record = send(serve(trickle(20)).url, plan, replace_idle(0.3))

    assert record.error is None, record.detail
    assert len(record.content_ns) == 20
    assert (record.max_gap_us or 0) / 1e3 > 400


def replace_idle(seconds: float) -> Timeouts:
    return LONG.model_copy(update={"idle_s": seconds})


def test_a_slow_reader_blocks_the_servers_writes(serve: Serve) -> None:
    """150 KB at 100 KB/s: the server cannot send faster, beyond the kernel's buffers."""
    took: list[float] = []

    def much(sock: socket.socket, _: bytes) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        began = time.perf_counter()
        sock.sendall(HEAD + framed(event(chunk("x" * 150_000)), ending(1)) + LAST)
        took.append(time.perf_counter() - began)

    record = send(serve(much).url, ReadPlan(ReadMode.SLOW, bytes_per_s=100_000))

    assert record.error is None, record.detail
    assert (record.ended_ns - record.sent_ns) / 1e9 == pytest.approx(1.5, rel=0.2)
    assert took[0] > 0.8


def numbered(first: int, texts: str) -> bytes:
    return b"".join(event(chunk(text), number) for number, text in enumerate(texts, first))


def test_a_client_resumes_a_stream(serve: Serve) -> None:
    def script(sock: socket.socket, request: bytes) -> None:
        if request.startswith(b"POST"):
            sock.sendall(
                HEAD.replace(b"X-Request-Id", b"X-Stream-Id: chatcmpl-1\r\nX-Request-Id") + framed(numbered(1, "abc"))
            )
            time.sleep(0.2)
        else:
            assert b"\r\nLast-Event-ID: 3\r\n" in request
            end = event(chunk(finish="stop"), 5) + event({"id": "chatcmpl-1", "choices": [], "usage": USAGE}, 6)
            sock.sendall(HEAD + framed(numbered(4, "d"), end, event(b"[DONE]", 7)) + LAST)

    server = serve(script)
    record = send(server.url, ReadPlan(ReadMode.RESUME, after_events=3, times=1, grace_s=30))

    assert record.error is None, record.detail
    assert (record.resumed, len(record.content_ns), record.output_tokens) == (1, 4, 4)
    assert server.requests[1].startswith(b"GET /v1/streams/chatcmpl-1 HTTP/1.1\r\n")


USAGE = {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}


def test_a_server_without_resumption_is_an_error(serve: Serve) -> None:
    def script(sock: socket.socket, request: bytes) -> None:
        if request.startswith(b"POST"):
            sock.sendall(HALF)
            time.sleep(0.2)
        else:
            sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")

    assert send(serve(script).url, ReadPlan(ReadMode.RESUME, after_events=1, times=1)).error is ErrorKind.HTTP_4XX
