"""What one connection may cost, whatever arrives on it: before its request has been looked at, while it is being
answered, and after."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gateway.transports.http.connection import FLOOD_LIMIT_S
from gateway.transports.http.lingering_close import LINGER_BYTES, LINGER_S
from gateway.transports.http.request_limits import MAX_HELD_BYTES
from gateway.transports.http.responses import DIRECT_SINK, read_body
from tests.support.time import clock, in_virtual_time, run, settle
from tests.support.transport import Connection
from tests.unit.gateway.transports.http.test_connection import GET, App

LONG = b"GET /x HTTP/1.1\r\nx: " + b"a" * 1000 + b"\r\n\r\n"
CHUNKED = b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


def post(length: int, *lines: bytes) -> bytes:
    return b"\r\n".join((b"POST /x HTTP/1.1", b"content-length: %d" % length, *lines, b"", b""))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn")


class Early:
    """Answers without reading the body."""

    def __init__(self, status: int = 404) -> None:
        self.status = status
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})


class Refusing:
    """Reads the body as the guard does: what the connection says of it becomes the answer."""

    def __init__(self) -> None:
        self.errors: list[Any] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def asked() -> Any:
            message = await receive()
            error = scope[DIRECT_SINK].body_error
            if error is not None and message.get("more_body", False):
                raise error
            return message

        try:
            self.bodies.append(await read_body(asked))
            status = 200
        except Exception as error:
            self.errors.append(error)
            status = getattr(error, "status", 499)
        if status == 499:
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


# Pipelining.


@in_virtual_time
async def test_pipelined_requests_begin_one_after_the_other_and_all_are_answered() -> None:
    app = App()
    connection = Connection(app)
    connection.say(GET * 200)

    assert len(connection.protocol.tasks) == 1
    assert not connection.protocol.pipeline

    await settle()
    for _ in range(300):
        await asyncio.sleep(0)

    assert connection.heard.count(b"HTTP/1.1 200 OK") == 200
    assert len(app.scopes) == 200

    connection.hang_up()


@in_virtual_time
async def test_pipelined_requests_with_bodies_are_told_apart_however_they_are_cut() -> None:
    requests = b"".join(post(number) + b"\r\n\r\n"[:number] + b"b" * (number - 4) for number in range(5, 20)) + GET
    requests += CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + GET + post(3) + b"end"
    wanted = [b"\r\n\r\n" + b"b" * (number - 4) for number in range(5, 20)] + [b"", b"abc", b"", b"end"]
    for packet in (1, 2, 3, 7, 50, 10_000):
        app = App()
        connection = Connection(app)
        connection.say(*(requests[index : index + packet] for index in range(0, len(requests), packet)))
        for _ in range(300):
            await asyncio.sleep(0)

        assert app.bodies == wanted
        assert connection.heard.count(b"HTTP/1.1 200 OK") == len(wanted)

        connection.hang_up()
        await settle()


@in_virtual_time
async def test_behind_a_running_answer_only_so_much_is_held_and_the_socket_is_read_no_more() -> None:
    app = App(slow=True)
    connection = Connection(app)
    connection.say(GET)
    await settle()
    while connection.transport.reading:
        connection.say(LONG * 10)

    assert len(connection.protocol._held_bytes) <= MAX_HELD_BYTES + 10 * len(LONG)
    assert len(app.scopes) == 1

    app.go_on.set()
    for _ in range(1000):
        await asyncio.sleep(0)

    assert connection.transport.reading, "they have caught up"
    assert len(app.scopes) > 60

    connection.hang_up()


@in_virtual_time
async def test_who_sends_without_end_and_reads_nothing_is_cut_off_soon() -> None:
    app = App(slow=True)
    connection = Connection(app)
    connection.say(GET)
    await settle()
    connection.say(GET * 10_000)
    connection.transport.unsent_bytes = 20_000
    connection.protocol.pause_writing()
    for _ in range(FLOOD_LIMIT_S + 1):
        assert not connection.transport.aborted
        connection.protocol.check_peer()

    assert connection.transport.aborted

    app.go_on.set()
    await settle()


@in_virtual_time
async def test_an_answer_that_nobody_reads_ends_its_connection_although_it_is_not_complete() -> None:
    """Streams have a watch of their own, other answers have not."""
    app = App(slow=True)
    connection = Connection(app, stall_timeout_s=30.0)
    connection.say(GET)
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
async def test_an_answer_that_is_read_slowly_is_not_cut_off() -> None:
    app = App()
    connection = Connection(app)
    connection.say(GET)
    await settle()
    for left in range(200, 0, -1):
        connection.transport.unsent_bytes = left
        connection.protocol.check_peer()

    assert not connection.transport.aborted

    connection.hang_up()


@in_virtual_time
async def test_a_client_that_pipelines_and_leaves_takes_its_running_request_along() -> None:
    app = App(slow=True)
    connection = Connection(app)
    connection.say(CHUNKED + b"0\r\n\r\n" + GET * 3)
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
async def test_an_upgrade_is_not_taken_and_the_connection_goes_on(kind: bytes) -> None:
    """Java's client asks for h2c with its first request."""
    app = App()
    connection = Connection(app)
    wanted = b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: " + kind + b"\r\n\r\n"
    connection.say(wanted, GET + post(3, b"connection: upgrade", b"upgrade: " + kind) + b"abc" + GET)
    for _ in range(100):
        await asyncio.sleep(0)

    assert app.bodies == [b"", b"", b"abc", b""]
    assert connection.heard.count(b"HTTP/1.1 200 OK") == 4

    connection.hang_up()


@pytest.mark.parametrize("target", [b"CONNECT a:443", b"GET http://a", b"OPTIONS *", b"GET //", b"GET /%ff%00"])
@in_virtual_time
async def test_strange_targets_end_in_an_answer(target: bytes) -> None:
    connection = Connection(App())
    connection.say(target + b" HTTP/1.1\r\nhost: a\r\n\r\n", b"x" * 100)
    await asyncio.sleep(30)

    assert connection.heard.split(b" ")[1] in {b"200", b"400"}
    assert connection.gone


# Headers, trailers and the framing of chunks.


@in_virtual_time
async def test_many_header_lines_are_a_431_however_short() -> None:
    app = App()
    connection = Connection(app, max_headers=100)
    connection.say(b"GET /x HTTP/1.1\r\n" + b"a:\r\n" * 101 + b"\r\n")
    await settle()
    status, body = connection.answer()

    assert (status, body["error"]["message"]) == (431, "The request has more than 100 headers.")
    assert app.scopes == []

    again = Connection(app, max_headers=100)
    again.say(b"GET /x HTTP/1.1\r\n" + b"a:\r\n" * 100 + b"\r\n")
    await settle()

    assert again.heard.startswith(b"HTTP/1.1 200")

    again.hang_up()


@in_virtual_time
async def test_trailers_are_read_and_dropped() -> None:
    """What no proxy has looked at must not become a header."""
    app = App()
    connection = Connection(app)
    connection.say(CHUNKED, b"3\r\nabc\r\n0\r\nauthorization: Bearer x\r\nexpect: 100-continue\r\n\r\n", GET)
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
async def test_what_frames_a_body_is_bounded(before: bytes, piece: bytes, packet: int) -> None:
    app = Refusing()
    connection = Connection(app, max_header_bytes=2000)
    connection.say(CHUNKED + before)
    await settle()
    sent = 0
    while not connection.heard and sent < 100_000:
        connection.say(piece * packet)
        sent += len(piece) * packet
        await settle()

    assert sent <= max(4000, len(piece) * packet)
    await settle()
    assert connection.heard.split(b" ")[1] in {b"431", b"400"}
    assert b"connection: close" in connection.heard
    assert app.bodies == []

    await settle()
    connection.hang_up()


@in_virtual_time
async def test_many_small_chunks_are_a_body_like_any_other() -> None:
    app = App()
    connection = Connection(app, max_header_bytes=2000)
    connection.say(CHUNKED + b"1\r\nx\r\n" * 10_000, b"0\r\n\r\n")
    for _ in range(30):
        await asyncio.sleep(0)

    assert app.bodies == [b"x" * 10_000]

    connection.hang_up()


@in_virtual_time
async def test_a_chunk_that_cannot_be_read_is_a_400_and_not_a_silent_end() -> None:
    app = Refusing()
    connection = Connection(app)
    connection.say(CHUNKED + b"3\r\nabc\r\n")
    await settle()
    connection.say(b"not a size\r\n")
    await settle()

    assert connection.heard.startswith(b"HTTP/1.1 400")
    assert app.errors[0].message == "This is not a valid HTTP request."
    assert connection.closed

    connection.hang_up()


# A body's time.


@in_virtual_time
async def test_a_body_that_is_not_complete_in_time_is_a_408_and_the_connection_ends() -> None:
    app = Refusing()
    connection = Connection(app, body_timeout_s=60.0, min_body_bytes_per_s=1)
    connection.say(post(10**6))
    began = clock().now()
    while not connection.heard and clock().now() - began < 200:
        connection.say(b"b" * 100)
        await asyncio.sleep(1)

    assert clock().now() - began == pytest.approx(60, abs=1.1)
    assert connection.heard.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in connection.heard
    assert app.errors[0].code == "body_timeout"

    await asyncio.sleep(LINGER_S + 1)

    assert connection.gone


@pytest.mark.parametrize("body", [post(10**6), CHUNKED])
@in_virtual_time
async def test_a_body_that_comes_in_drops_is_a_408_long_before(body: bytes) -> None:
    app = Refusing()
    connection = Connection(app, body_timeout_s=60.0, min_body_bytes_per_s=1000)
    connection.say(body, b"1\r\n" * (body is CHUNKED) + b"b")
    began = clock().now()
    while not connection.heard and clock().now() - began < 200:
        await asyncio.sleep(1)

    assert clock().now() - began == pytest.approx(10, abs=1.1)
    assert app.errors[0].code == "body_timeout"

    connection.hang_up()


@in_virtual_time
async def test_a_body_in_time_costs_its_request_nothing() -> None:
    app = Refusing()
    connection = Connection(app, body_timeout_s=60.0, min_body_bytes_per_s=1000)
    for _ in range(3):
        connection.say(post(550_000))
        for _ in range(55):
            connection.say(b"b" * 10_000)
            await asyncio.sleep(1)
    await asyncio.sleep(70)

    assert [len(body) for body in app.bodies] == [550_000] * 3
    assert connection.heard.count(b"HTTP/1.1 200 OK") == 3

    connection.hang_up()


@in_virtual_time
async def test_a_client_that_leaves_in_its_body_is_gone_and_no_error() -> None:
    app = Refusing()
    connection = Connection(app)
    connection.say(post(1000), b"b")
    await settle()
    connection.hang_up()
    await asyncio.sleep(100)

    assert [type(error).__name__ for error in app.errors] == ["ClientDisconnected"]


@in_virtual_time
async def test_an_application_that_does_not_hear_of_it_is_not_waited_for() -> None:
    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)

    connection = Connection(deaf, body_timeout_s=5.0)
    connection.say(post(1000), b"b")
    await asyncio.sleep(4)

    assert not connection.gone

    await asyncio.sleep(7)

    assert connection.transport.aborted


@in_virtual_time
async def test_bodies_of_all_connections_have_room_together() -> None:
    app, state = Refusing(), ServerState()
    connections = [Connection(app, state=state, max_total_body_bytes=300_000) for _ in range(5)]
    for connection in connections[:3]:
        connection.say(post(100_000), b"b" * 90_000)
        await settle()
    for connection in connections[3:]:
        connection.say(post(100_000), b"b" * 90_000)
        await settle()

    assert [connection.heard.split(b" ")[1:2] for connection in connections] == [[b"503"], [b"503"], [], [], []]
    assert {error.code for error in app.errors} == {"overloaded"}

    small = Connection(app, state=state)
    small.say(post(5) + b"hello")
    for connection in connections[2:]:
        connection.say(b"b" * 10_000)
    await settle()

    assert [len(body) for body in app.bodies] == [5, 100_000, 100_000, 100_000]
    assert connections[2].protocol._budget.used_bytes == 0, "what has been answered is not held"

    for connection in (*connections, small):
        connection.hang_up()


@in_virtual_time
async def test_a_body_is_not_counted_when_its_client_is_gone_or_its_answer_has_begun() -> None:
    app, state = App(slow=True), ServerState()
    leaving = Connection(Refusing(), state=state)
    leaving.say(post(200_000), b"b" * 100_000)
    answered = Connection(app, state=state)
    answered.say(post(100_000) + b"b" * 100_000)
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


# An answer that came before the end of the body.


@pytest.mark.parametrize("status", [401, 404, 413])
@in_virtual_time
async def test_an_early_answer_is_the_last_and_the_rest_of_the_body_is_dropped(status: int) -> None:
    app = Early(status)
    connection = Connection(app)
    connection.say(post(10**6) + b"b" * 1000)
    await settle()

    assert connection.heard.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in connection.heard
    assert connection.transport.half_closed
    assert not connection.gone, "closing now would make the kernel take the answer back"

    for _ in range(20):
        connection.say(b"b" * 100_000)
        await settle()

    assert len(connection.protocol.cycle.body) <= 1000
    assert connection.transport.reading

    await asyncio.sleep(LINGER_S)

    assert connection.gone
    assert app.calls == 1


@in_virtual_time
async def test_what_follows_an_early_answer_is_never_taken_for_a_request() -> None:
    app = Early()
    connection = Connection(app)
    connection.say(post(len(GET)))
    await settle()
    connection.say(GET, GET)
    await settle()

    assert app.calls == 1
    assert connection.heard.count(b"HTTP/1.1") == 1

    connection.hang_up()


@in_virtual_time
async def test_the_rest_of_a_body_is_not_read_for_ever() -> None:
    connection = Connection(Early())
    connection.say(post(10**12))
    await settle()
    sent = 0
    while not connection.gone and sent < 10 * LINGER_BYTES:
        connection.say(b"b" * 2**20)
        sent += 2**20

    assert LINGER_BYTES < sent < LINGER_BYTES + 2**22


@in_virtual_time
async def test_a_client_that_waits_for_100_continue_gets_its_answer_and_an_end() -> None:
    connection = Connection(Early(401))
    connection.say(post(1000, b"expect: 100-continue"))
    await settle()

    assert b"100 Continue" not in connection.heard
    assert connection.heard.startswith(b"HTTP/1.1 401")
    assert connection.closed

    connection.hang_up()


@in_virtual_time
async def test_an_early_answer_without_a_body_in_sight_keeps_the_connection() -> None:
    app = Early()
    connection = Connection(app)
    for _ in range(3):
        connection.say(post(3) + b"abc")
        await settle()
        connection.say(GET)
        await settle()

    assert app.calls == 6
    assert b"connection: close" not in connection.heard
    assert not connection.closed

    connection.hang_up()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@in_virtual_time
async def test_a_request_that_asks_for_the_end_gets_it_at_once(version: bytes) -> None:
    connection = Connection(Early())
    connection.say(b"POST /x HTTP/" + version + b"\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc")
    await settle()

    assert connection.gone
    assert not connection.transport.half_closed


@in_virtual_time
async def test_a_refusal_can_be_read_by_a_client_that_is_still_sending() -> None:
    connection = Connection(App(), max_header_bytes=2000)
    connection.say(b"GET /x HTTP/1.1\r\nx: " + b"a" * 3000)
    await settle()

    assert connection.answer()[0] == 431
    assert not connection.gone

    connection.say(b"a" * 1000)
    await asyncio.sleep(LINGER_S + 0.1)

    assert connection.gone
    assert connection.heard.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "sent", [b"", b"GET /x HTTP/1.1\r\nx: y\r\n", GET, post(1000) + b"b", b"GET /x HTTP/1.1\r\nx: " + b"a" * 40_000]
)
@in_virtual_time
async def test_what_a_connection_held_is_free_when_it_is_lost(sent: bytes) -> None:
    """Not when garbage is collected, which happens rarely here."""
    app = Refusing()
    connection = Connection(app)
    connection.say(sent)
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
async def test_a_process_that_stood_still_does_not_blame_its_clients(sent: bytes) -> None:
    """A machine that was paused, a loop that was held up: what came meanwhile has not been looked at yet."""
    app = Refusing()
    connection = Connection(app, header_timeout_s=10.0)
    connection.say(sent)
    await settle()
    clock().advance(60)
    await asyncio.sleep(0.1)

    assert connection.heard == b""

    connection.say(b"\r\n" if sent.startswith(b"GET") else b"b" * 999)
    await settle()

    assert connection.heard.startswith(b"HTTP/1.1 200")

    connection.hang_up()


@in_virtual_time
async def test_after_it_stood_still_clients_have_their_time_once_more_and_no_more() -> None:
    for sent in (b"GET /x HTTP/1.1\r\nx: y\r\n", post(1000) + b"b"):
        connection = Connection(Refusing(), header_timeout_s=10.0)
        connection.say(sent)
        await settle()
        clock().advance(60)
        await asyncio.sleep(11)

        assert connection.heard.startswith(b"HTTP/1.1 408")

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
def test_whatever_comes_in_whatever_pieces_ends(words: list[bytes], packet: int) -> None:
    """No input makes the parser's caller go round in circles, and none is waited for longer than the limits say."""

    async def feed() -> None:
        connection = Connection(Refusing(), header_timeout_s=10.0, body_timeout_s=20.0, idle_timeout_s=30.0)
        sent = b"".join(words)
        connection.say(*(sent[index : index + packet] for index in range(0, len(sent), packet)))
        await asyncio.sleep(200)

        assert connection.gone
        statuses = [part[:3] for part in connection.heard.split(b"HTTP/1.1 ")[1:]]
        assert set(statuses) <= {b"200", b"400", b"408", b"431", b"100"}

    run(feed(), debug=False)
