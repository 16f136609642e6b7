"""Requests that go to another worker, which is a script on a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.multiprocess import stream_ids
from gateway.multiprocess.worker.peer_proxy import HOLDS_PATH, PeerProxy
from tests.support.asgi import Client
from tests.support.scripted_peer import CHUNKED, WHOLE, ScriptedPeer, local_app
from tests.support.time import in_real_time

THEIRS = "chatcmpl-" + stream_ids.new(1)
OURS = "chatcmpl-" + stream_ids.new(0)
NOWHERE = Path("/nowhere")


def proxy(*peers: Path, has_request: bool = False, stall_timeout_s: float = 30) -> PeerProxy:
    """Of worker 0; `peers` are workers 1, 2, ..."""
    numbered: Mapping[int, Path] = dict(enumerate(peers or (NOWHERE,), 1))
    return PeerProxy(local_app, peers=numbered, has_request=lambda _: has_request, stall_timeout_s=stall_timeout_s)


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
async def test_a_request_that_is_not_about_another_workers_stream_is_served_here(method: str, path: str) -> None:
    assert (await Client(proxy(), method, path).finish()).body == b"here"


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel")])
@in_real_time
async def test_a_request_about_another_workers_stream_is_forwarded_unchanged(method: str, tail: str) -> None:
    async with ScriptedPeer(WHOLE) as peer:
        headers = {"Authorization": "Bearer x", "Host": "me", "Connection": "keep-alive", "Content-Length": "3"}
        client = Client(
            proxy(peer.path), method, f"/v1/streams/{THEIRS}{tail}?starting_after=3", headers=headers, body=b"abc"
        )
        await client.finish()

    assert (client.status, client.body, client.complete) == (200, b"{}", True)
    assert client.headers == {"content-type": "application/json", "content-length": "2", "x-a": "b"}
    assert peer.heads == [
        f"{method} /v1/streams/{THEIRS}{tail}?starting_after=3 HTTP/1.1\r\n".encode()
        + b"authorization: Bearer x\r\nhost: me\r\ncontent-type: application/json\r\n\r\n"
    ]


@pytest.mark.parametrize("head", [WHOLE.removesuffix(b"{}"), CHUNKED.replace(b"transfer-encoding: chunked\r\n", b"")])
@in_real_time
async def test_head_has_no_body(head: bytes) -> None:
    async with ScriptedPeer(head) as peer:
        client = await Client(proxy(peer.path), "HEAD", f"/v1/streams/{THEIRS}").finish()

    assert (client.status, client.body, client.complete) == (200, b"", True)
    assert peer.heads[0].startswith(b"HEAD ")


@in_real_time
async def test_a_stream_is_copied_chunk_by_chunk_to_its_end() -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for number in range(5):
            writer.write(b"6\r\ndata %d\r\n" % number)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")

    async with ScriptedPeer(script) as peer:
        client = await Client(proxy(peer.path), "GET", f"/v1/streams/{THEIRS}").finish()

    assert client.bodies == [*(b"data %d" % number for number in range(5)), b""]
    assert client.complete


@in_real_time
async def test_a_response_without_a_body_has_none() -> None:
    async with ScriptedPeer(b"HTTP/1.1 204 No Content\r\n\r\n") as peer:
        client = await Client(proxy(peer.path), "GET", f"/v1/streams/{THEIRS}").finish()

    assert (client.status, client.body, client.complete) == (204, b"", True)


@in_real_time
async def test_an_incomplete_response_stays_incomplete() -> None:
    """The server then breaks the connection without the final chunk, so that the client notices."""

    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"6\r\ndata 1\r\n3\r\nda")
        await writer.drain()
        writer.transport.abort()

    async with ScriptedPeer(script) as peer:
        client = await Client(proxy(peer.path), "GET", f"/v1/streams/{THEIRS}").finish()

    assert (client.status, client.body, client.complete) == (200, b"data 1", False)


@pytest.mark.parametrize("is_there", [True, False])
@in_real_time
async def test_a_worker_that_is_gone_is_a_503(is_there: bool) -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with ScriptedPeer(script) as peer:
        path = peer.path if is_there else NOWHERE
        client = await Client(proxy(path), "GET", f"/v1/streams/{THEIRS}").finish()

    assert (client.status, client.error()["code"], client.headers["retry-after"]) == (503, "server_draining", "1")


@in_real_time
async def test_a_client_that_disconnects_is_disconnected_from_the_peer() -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"6\r\ndata 1\r\n")

    async with ScriptedPeer(script) as peer:
        client = Client(proxy(peer.path), "GET", f"/v1/streams/{THEIRS}")
        while len(client.messages) < 2:
            await asyncio.sleep(0.01)
        client.leave()
        await client.finish()
        await peer.closed.wait()


@in_real_time
async def test_a_client_that_does_not_read_is_dropped_and_buffers_stay_small() -> None:
    """Backpressure reaches the other worker, and nothing piles up in between."""
    written = 0

    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(CHUNKED)
        while True:
            writer.write(b"1000\r\n" + bytes(4096) + b"\r\n")
            await writer.drain()
            written += 4096

    async with ScriptedPeer(script) as peer:
        app = proxy(peer.path, stall_timeout_s=0.3)
        client = Client(app, "GET", f"/v1/streams/{THEIRS}", direct_sink=True)
        while len(client.messages) < 3:
            await asyncio.sleep(0)
        client.reading.clear()
        await client.finish()

    assert client.broken
    assert written < 2**20


@in_real_time
async def test_the_owner_of_an_id_that_names_no_worker_is_found_by_asking_all() -> None:
    async def has_it(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE)

    async with ScriptedPeer(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n") as one, ScriptedPeer(has_it) as two:
        app = proxy(one.path, two.path, NOWHERE)
        client = await Client(app, "DELETE", "/v1/streams/resp_1").finish()

    assert client.body == b"{}"
    assert [len(one.heads), len(two.heads)] == [1, 2]
    assert one.heads[0].startswith(f"GET {HOLDS_PATH}".encode())

    assert (await Client(proxy(has_request=True), "DELETE", "/v1/streams/resp_1").finish()).body == b"here"
    assert (await Client(proxy(), "DELETE", "/v1/streams/resp_1").finish()).body == b"here"
