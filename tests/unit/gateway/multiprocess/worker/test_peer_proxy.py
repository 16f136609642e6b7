"""What goes to another worker, and how it comes back; the other worker is a script on a Unix socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.errors import Overloaded
from gateway.multiprocess import stream_ids
from gateway.multiprocess.worker.metrics_merge import MetricsPage
from gateway.multiprocess.worker.peer_client import PeerError, PeerRequest
from gateway.multiprocess.worker.peer_metrics import PeerApp, collect_metrics
from gateway.multiprocess.worker.peer_proxy import HOLDS_PATH, PeerProxy
from tests.support.asgi import Client

THEIRS = "chatcmpl-" + stream_ids.new(1)
OURS = "chatcmpl-" + stream_ids.new(0)
Script = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def in_real_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def runner(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return runner


class Sibling:
    """A worker that answers as the script says, and remembers the heads of its requests."""

    def __init__(self, script: Script | bytes) -> None:
        self.heads: list[bytes] = []
        self.left = asyncio.Event()
        self._script = script
        self._folder = tempfile.TemporaryDirectory()

    @property
    def place(self) -> Path:
        return Path(self._folder.name) / "sock"

    async def __aenter__(self) -> Sibling:
        self._server = await asyncio.start_unix_server(self._serve, self.place)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._folder.cleanup()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        try:
            if isinstance(self._script, bytes):
                writer.write(self._script)
            else:
                await self._script(head, reader, writer)
            await reader.read()
        except ConnectionError:
            pass
        finally:
            self.left.set()
            writer.close()


async def here(scope: Any, receive: Any, send: Any) -> None:
    """What this worker serves itself."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


def relay(
    place: Path = Path("/nowhere"), *, holds: bool = False, count: int = 2, stall_timeout_s: float = 30
) -> PeerProxy:
    return PeerProxy(
        here, number=0, count=count, place=lambda _: place, holds=lambda _: holds, stall_timeout_s=stall_timeout_s
    )


WHOLE = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: application/json\r\ncontent-length: 2\r\nx-a: b\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("GET", f"/v1/streams/{OURS}"),
        ("DELETE", f"/v1/streams/{OURS}"),
        ("GET", "/v1/streams/chatcmpl-" + stream_ids.new(9)),
        ("GET", "/v1/streams/resp_123"),
        ("GET", f"/v1/streams/{THEIRS}/cancel"),
        ("POST", f"/v1/streams/{THEIRS}/other"),
        ("GET", f"/v1/streams/{THEIRS}/"),
    ],
)
@in_real_time
async def test_what_is_not_about_another_workers_stream_is_served_here(method: str, path: str) -> None:
    assert (await Client(relay(), method, path).finish()).body == b"here"


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel")])
@in_real_time
async def test_what_is_goes_there_as_it_came(method: str, tail: str) -> None:
    async with Sibling(WHOLE) as sibling:
        headers = {"Authorization": "Bearer x", "Host": "me", "Connection": "keep-alive", "Content-Length": "3"}
        client = Client(
            relay(sibling.place), method, f"/v1/streams/{THEIRS}{tail}?starting_after=3", headers=headers, body=b"abc"
        )
        await client.finish()

    assert (client.status, client.body, client.complete) == (200, b"{}", True)
    assert client.headers == {"content-type": "application/json", "content-length": "2", "x-a": "b"}
    assert sibling.heads == [
        f"{method} /v1/streams/{THEIRS}{tail}?starting_after=3 HTTP/1.1\r\n".encode()
        + b"authorization: Bearer x\r\nhost: me\r\ncontent-type: application/json\r\n\r\n"
    ]


@pytest.mark.parametrize("head", [WHOLE.removesuffix(b"{}"), CHUNKED.replace(b"transfer-encoding: chunked\r\n", b"")])
@in_real_time
async def test_head_has_no_body_to_wait_for(head: bytes) -> None:
    async with Sibling(head) as sibling:
        client = await Client(relay(sibling.place), "HEAD", f"/v1/streams/{THEIRS}").finish()

    assert (client.status, client.body, client.complete) == (200, b"", True)
    assert sibling.heads[0].startswith(b"HEAD ")


@in_real_time
async def test_a_stream_comes_piece_by_piece_and_to_its_end() -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for number in range(5):
            writer.write(b"6\r\ndata %d\r\n" % number)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")

    async with Sibling(script) as sibling:
        client = await Client(relay(sibling.place), "GET", f"/v1/streams/{THEIRS}").finish()

    assert client.bodies == [*(b"data %d" % number for number in range(5)), b""]
    assert client.complete


@in_real_time
async def test_an_answer_without_a_body_has_none() -> None:
    async with Sibling(b"HTTP/1.1 204 No Content\r\n\r\n") as sibling:
        client = await Client(relay(sibling.place), "GET", f"/v1/streams/{THEIRS}").finish()

    assert (client.status, client.body, client.complete) == (204, b"", True)


@in_real_time
async def test_half_an_answer_stays_half_an_answer() -> None:
    """The server then breaks the connection without the final chunk, so that the client notices."""

    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"6\r\ndata 1\r\n3\r\nda")
        await writer.drain()
        writer.transport.abort()

    async with Sibling(script) as sibling:
        client = await Client(relay(sibling.place), "GET", f"/v1/streams/{THEIRS}").finish()

    assert (client.status, client.body, client.complete) == (200, b"data 1", False)


@pytest.mark.parametrize("there", [True, False])
@in_real_time
async def test_a_worker_that_is_gone_is_said_to_be(there: bool) -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with Sibling(script) as sibling:
        place = sibling.place if there else Path("/nowhere")
        client = await Client(relay(place), "GET", f"/v1/streams/{THEIRS}").finish()

    assert (client.status, client.error()["code"], client.headers["retry-after"]) == (503, "server_draining", "1")


@in_real_time
async def test_a_client_that_leaves_has_left_there_too() -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"6\r\ndata 1\r\n")

    async with Sibling(script) as sibling:
        client = Client(relay(sibling.place), "GET", f"/v1/streams/{THEIRS}")
        while len(client.messages) < 2:
            await asyncio.sleep(0.01)
        client.leave()
        await client.finish()
        await sibling.left.wait()


@in_real_time
async def test_a_client_that_does_not_read_costs_little_and_is_let_go() -> None:
    """The other worker is held up as the client would hold it up, and nothing piles up between."""
    written = 0

    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(CHUNKED)
        while True:
            writer.write(b"1000\r\n" + bytes(4096) + b"\r\n")
            await writer.drain()
            written += 4096

    async with Sibling(script) as sibling:
        app = relay(sibling.place, stall_timeout_s=0.3)
        client = Client(app, "GET", f"/v1/streams/{THEIRS}", direct_sink=True)
        while len(client.messages) < 3:
            await asyncio.sleep(0)
        client.reading.clear()
        await client.finish()

    assert client.broken
    assert written < 2**20


@in_real_time
async def test_for_an_id_that_tells_nothing_all_are_asked_who_has_it() -> None:
    async def has_it(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE)

    async with Sibling(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n") as one, Sibling(has_it) as two:
        places = {1: one.place, 2: two.place, 3: Path("/nowhere")}
        app = PeerProxy(here, number=0, count=4, place=places.__getitem__, holds=lambda _: False, stall_timeout_s=30)
        client = await Client(app, "DELETE", "/v1/streams/resp_1").finish()

    assert client.body == b"{}"
    assert [len(one.heads), len(two.heads)] == [1, 2]
    assert one.heads[0].startswith(b"GET " + HOLDS_PATH)

    assert (await Client(relay(holds=True), "DELETE", "/v1/streams/resp_1").finish()).body == b"here"
    assert (await Client(relay(), "DELETE", "/v1/streams/resp_1").finish()).body == b"here"


@in_real_time
async def test_a_worker_tells_the_others_its_numbers_and_what_it_has() -> None:
    page = MetricsPage("# TYPE a counter\na 1.0\n", {"0": 5.0}, True)
    inner = PeerApp(here, lambda: page, lambda name: name == "resp_1")
    told = await Client(inner, "GET", "/metrics").finish()

    assert told.body == page.text.encode()
    assert orjson.loads(told.headers["x-sluice-state"]) == {"stats_received_s": {"0": 5.0}, "has_requests": True}
    assert (await Client(inner, "GET", "/holds/resp_1").finish()).status == 200
    assert (await Client(inner, "GET", "/holds/resp_2").finish()).status == 404
    assert (await Client(inner, "GET", "/v1/streams/x").finish()).body == b"here"


@in_real_time
async def test_one_exposition_is_made_of_all() -> None:
    state = b'{"stats_received_s":{},"has_requests":false}'
    body = b"# TYPE a counter\na 2.0\n"
    head = b"HTTP/1.1 200 OK\r\nx-sluice-state: " + state + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with Sibling(head + body) as sibling:
        made = await collect_metrics(lambda: MetricsPage("# TYPE a counter\na 1.0\n"), {1: sibling.place})

    assert made == b"# TYPE a counter\na 3.0\n"


@in_real_time
async def test_without_one_of_the_workers_there_are_no_numbers() -> None:
    """A sum without its part would look like counters that began anew."""

    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx-sluice-state: {}\r\ncontent-length: 9\r\n\r\nshort")
        writer.write_eof()

    async with Sibling(script) as sibling:
        for place in (sibling.place, Path("/nowhere")):
            with pytest.raises(Overloaded, match="Worker 1"):
                await collect_metrics(lambda: MetricsPage(""), {1: place})


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"HTTP/1.1 200\r\n" + b"a" * 2**17, b"HTTP/1.1 200 OK\r\n"])
@in_real_time
async def test_an_answer_that_is_none_is_broken(head: bytes) -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        writer.write_eof()

    async with Sibling(script) as sibling:
        request = await PeerRequest.send(sibling.place, "GET", b"/")
        with pytest.raises(PeerError):
            await request.head()
        request.close()
