"""`test_peer_proxy.py` has responses that are forwarded; here are those that are none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.multiprocess.worker.peer_client import PeerError, PeerRequest
from tests.support.scripted_peer import CHUNKED, WHOLE, ScriptedPeer
from tests.support.time import in_real_time


@in_real_time
async def test_a_response_is_read_to_its_end() -> None:
    async with ScriptedPeer(WHOLE) as peer:
        request = await PeerRequest.send(peer.path, "GET", b"/x?y", [(b"host", b"me")])

        assert await request.head() == (
            200,
            [(b"date", b"today"), (b"content-type", b"application/json"), (b"content-length", b"2"), (b"x-a", b"b")],
        )
        assert await request.body() == b"{}"
        assert peer.heads == [b"GET /x?y HTTP/1.1\r\nhost: me\r\n\r\n"]

        request.close()


@in_real_time
async def test_a_request_has_a_host() -> None:
    async with ScriptedPeer(WHOLE) as peer:
        request = await PeerRequest.send(peer.path, "GET", b"/")
        await request.head()
        request.close()

    assert peer.heads == [b"GET / HTTP/1.1\r\nhost: peer\r\n\r\n"]


@in_real_time
async def test_a_worker_that_does_not_listen_is_an_error() -> None:
    with pytest.raises(PeerError):
        await PeerRequest.send(Path("/nowhere"), "GET", b"/")


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"HTTP/1.1 200\r\n" + b"a" * 2**17, b"HTTP/1.1 200 OK\r\n"])
@in_real_time
async def test_a_malformed_head_is_an_error(head: bytes) -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        writer.write_eof()

    async with ScriptedPeer(script) as peer:
        request = await PeerRequest.send(peer.path, "GET", b"/")
        with pytest.raises(PeerError):
            await request.head()
        request.close()


@pytest.mark.parametrize("body", [b"", b"5\r\nda", b"5\r\ndata 0\r\n", b"zz\r\n\r\n", b"1" * 2**17])
@in_real_time
async def test_a_broken_chunk_is_an_error(body: bytes) -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + body)
        writer.write_eof()

    async with ScriptedPeer(script) as peer:
        request = await PeerRequest.send(peer.path, "GET", b"/")
        await request.head()
        with pytest.raises(PeerError):
            await request.body()
        request.close()
