"""Forwards requests about a stream that another worker has to that worker, unchanged.

The other worker handles them completely: keys, errors, log line, metrics. This one only copies bytes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from gateway.asgi import DIRECT_SINK, send_whole, wait_disconnect
from gateway.errors import Draining
from gateway.multiprocess import stream_ids
from gateway.multiprocess.worker.peer_client import PeerError, PeerRequest
from gateway.transports.http.error_response import error_response

HOLDS_PATH = "/holds/"
"""On a worker's own socket: whether it has the request of the id that follows."""

_STREAM_PATH = re.compile(r"/v1/streams/([^/]+)(/cancel)?")
# They describe one connection, not the message.
_HOP_HEADERS = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"})
# Peers get a request only for ids that name no worker. One that takes longer is left out, so that the others' answers
# count.
_ANSWER_WITHIN_S = 2.0


@dataclass(slots=True, eq=False)
class PeerProxy:
    """An ASGI app around `app`, which serves this worker's own requests. `peers` are the sockets of the other workers,
    by number; `has_request`: whether vLLM's app runs a request of that id in this worker."""

    app: Any
    _: KW_ONLY
    peers: Mapping[int, Path]
    has_request: Callable[[str], bool]
    stall_timeout_s: float

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        peer = await self._owner(scope) if scope["type"] == "http" else None
        if peer is None:
            await self.app(scope, receive, send)
        else:
            await self._forward(peer, scope, receive, send)

    async def _owner(self, scope: MutableMapping[str, Any]) -> Path | None:
        """The socket of the worker that the request is for; None: this one."""
        found = _STREAM_PATH.fullmatch(scope["path"])
        if found is None or (found[2] and scope["method"] != "POST"):
            return None
        stream_id = found[1]
        number = stream_ids.worker_of(stream_id)
        if number is not None:
            return self.peers.get(number)
        if scope["method"] in ("DELETE", "POST") and not self.has_request(stream_id):
            # One of vLLM's own ids, which name no worker.
            return await self._find(stream_id)
        return None

    async def _find(self, stream_id: str) -> Path | None:
        paths = list(self.peers.values())
        answers = await asyncio.gather(*(_peer_has(path, stream_id) for path in paths))
        return next((path for path, has_it in zip(paths, answers, strict=True) if has_it), None)

    async def _forward(self, peer: Path, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        target = scope.get("raw_path") or scope["path"].encode()
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_HEADERS | {b"content-length"}]
        try:
            request = await PeerRequest.send(peer, scope["method"], target, headers)
        except PeerError:
            await _send_gone(send)
            return
        copying = asyncio.ensure_future(self._copy_response(request, scope, send))
        leaving = asyncio.ensure_future(wait_disconnect(receive))
        try:
            await asyncio.wait((copying, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The other worker sees by this that the client has disconnected.
            request.close()
            leaving.cancel()
            if not copying.done():
                copying.cancel()
            await asyncio.gather(copying, leaving, return_exceptions=True)
        if not copying.cancelled():
            copying.result()

    async def _copy_response(self, request: PeerRequest, scope: MutableMapping[str, Any], send: Any) -> None:
        try:
            status, headers = await request.head()
        except PeerError:
            await _send_gone(send)
            return
        dropped = (_HOP_HEADERS | {b"date"}) - {b"connection"}
        kept = [(name, value) for name, value in headers if name not in dropped]
        await send({"type": "http.response.start", "status": status, "headers": kept})
        try:
            async for piece in request.pieces():
                # The other worker notices a stalled client only after the buffers between the two have filled.
                async with asyncio.timeout(self.stall_timeout_s):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except PeerError:
            # The response is incomplete: returning now makes the server break the connection without the final chunk.
            return
        except TimeoutError:
            if DIRECT_SINK in scope:
                scope[DIRECT_SINK].abort()
            return
        await send({"type": "http.response.body", "body": b""})


async def _peer_has(peer: Path, stream_id: str) -> bool:
    quoted = "".join(f"%{byte:02X}" for byte in stream_id.encode())
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            request = await PeerRequest.send(peer, "GET", (HOLDS_PATH + quoted).encode())
            try:
                status, _ = await request.head()
            finally:
                request.close()
    except (PeerError, TimeoutError):
        return False
    return status == 200


async def _send_gone(send: Any) -> None:
    """The worker that has the stream is dead or exits, and then the whole server does."""
    error = Draining("The process that has this request is gone; the server is stopping.", retry_after_s=1)
    await send_whole(send, *error_response(error))
