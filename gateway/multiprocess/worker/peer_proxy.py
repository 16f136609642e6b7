"""In front of everything that a worker serves: requests about a stream that another worker has go there, as they are.

The other worker does all that is to be done about them: keys, errors, log line, metrics. Here only bytes pass.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from gateway.domain import DIRECT_SINK
from gateway.errors import Draining
from gateway.multiprocess import stream_ids
from gateway.multiprocess.worker.peer_client import PeerError, PeerRequest
from gateway.transports.http.error_response import error_response

HOLDS_PATH = b"/holds/"
"""Path, on the workers' own sockets: whether that worker has the request of the id behind it."""

_PATH = re.compile(r"/v1/streams/([^/]+)(/cancel)?")
# About one connection, not about the message.
_HOP = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"})
# Asked only for ids that tell nothing; a worker that takes longer is not asked for the others' sake.
_ANSWER_WITHIN_S = 2.0


class PeerProxy:
    """An ASGI app around `app`, which serves what is here."""

    def __init__(
        self,
        app: Any,
        *,
        number: int,
        count: int,
        place: Callable[[int], Path],
        holds: Callable[[str], bool],
        stall_timeout_s: float,
    ) -> None:
        """`place` tells where a worker listens for the others; `holds` whether a request of that id is here."""
        self._app = app
        self._number = number
        self._others = [other for other in range(count) if other != number]
        self._place = place
        self._holds = holds
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        other = await self._owner(scope) if scope["type"] == "http" else None
        if other is None:
            await self._app(scope, receive, send)
        else:
            await self._pass_on(other, scope, receive, send)

    async def _owner(self, scope: MutableMapping[str, Any]) -> int | None:
        """Which other worker this request is for; None: it is for this one."""
        found = _PATH.fullmatch(scope["path"])
        if found is None or scope["method"] != ("POST" if found[2] else scope["method"]):
            return None
        stream_id = found[1]
        number = stream_ids.worker_of(stream_id)
        if number is not None:
            return number if number in self._others else None
        if scope["method"] in ("DELETE", "POST") and not self._holds(stream_id):
            # One of vLLM's own, whose ids tell nothing.
            return await self._ask_all(stream_id)
        return None

    async def _ask_all(self, stream_id: str) -> int | None:
        answers = await asyncio.gather(*(self._ask(other, stream_id) for other in self._others))
        return next((other for other, has in zip(self._others, answers, strict=True) if has), None)

    async def _ask(self, other: int, stream_id: str) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                request = await PeerRequest.send(self._place(other), "GET", HOLDS_PATH + _quoted(stream_id))
                try:
                    status, _ = await request.head()
                finally:
                    request.close()
        except (PeerError, TimeoutError):
            return False
        return status == 200

    async def _pass_on(self, other: int, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        target = scope.get("raw_path") or scope["path"].encode()
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP | {b"content-length"}]
        try:
            request = await PeerRequest.send(self._place(other), scope["method"], target, headers)
        except PeerError:
            await _refuse(send)
            return
        pumping = asyncio.ensure_future(self._pump(request, scope, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((pumping, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Also how the other worker hears that the client has left.
            request.close()
            leaving.cancel()
            if not pumping.done():
                pumping.cancel()
            await asyncio.gather(pumping, leaving, return_exceptions=True)
        if not pumping.cancelled():
            pumping.result()

    async def _pump(self, request: PeerRequest, scope: MutableMapping[str, Any], send: Any) -> None:
        try:
            status, headers = await request.head()
        except PeerError:
            await _refuse(send)
            return
        kept = [(name, value) for name, value in headers if name == b"connection" or name not in _HOP | {b"date"}]
        await send({"type": "http.response.start", "status": status, "headers": kept})
        try:
            async for piece in request.pieces():
                await self._within_patience(send({"type": "http.response.body", "body": piece, "more_body": True}))
        except PeerError:
            # Half a response is out. Returning now makes the server break the connection without the final chunk.
            return
        except TimeoutError:
            if DIRECT_SINK in scope:
                scope[DIRECT_SINK].abort()
            return
        await send({"type": "http.response.body", "body": b""})

    async def _within_patience(self, sending: Awaitable[None]) -> None:
        # The other worker sees a client that reads nothing only as far as the buffers between us reach.
        async with asyncio.timeout(self._stall_timeout_s):
            await sending


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Any) -> None:
    """The worker that has the stream is dead or ending, and this one will follow it."""
    error = Draining("The process that has this request is gone; the server is stopping.", retry_after_s=1)
    status, headers, body = error_response(error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _quoted(stream_id: str) -> bytes:
    return "".join(f"%{byte:02X}" for byte in stream_id.encode()).encode()


__all__ = ["HOLDS_PATH", "PeerProxy"]
