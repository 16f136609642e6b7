"""What a worker tells the others on their own sockets, and how it makes one exposition of what they tell.

A worker that does not answer makes the scrape fail: sums without its part would look to Prometheus like counters that
began anew, and every rate after that would be wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import Overloaded
from gateway.multiprocess.worker.metrics_merge import MetricsPage, merge
from gateway.multiprocess.worker.peer_client import PeerError, PeerRequest
from gateway.multiprocess.worker.peer_proxy import HOLDS_PATH

# A scrape has some ten seconds; what the others have not said by then would come too late.
_ANSWER_WITHIN_S = 5.0
_STATE = b"x-sluice-state"
_TEXT = b"text/plain; charset=utf-8"


class PeerApp:
    """The ASGI app on a worker's own socket, which only the other workers can reach: what they ask for themselves, and
    `app` for the requests that they pass on."""

    def __init__(self, app: Any, page: Callable[[], MetricsPage], holds: Callable[[str], bool]) -> None:
        self._app = app
        self._page = page
        self._holds = holds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/metrics":
            page = self._page()
            state = orjson.dumps({"stats_received_s": page.stats_received_s, "has_requests": page.has_requests})
            await _answer(send, 200, page.text.encode(), (_STATE, state))
        elif path.startswith(HOLDS_PATH.decode()):
            await _answer(send, 200 if self._holds(path.removeprefix(HOLDS_PATH.decode())) else 404, b"")
        else:
            await self._app(scope, receive, send)


async def _answer(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    lines = [(b"content-type", _TEXT), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def collect_metrics(page: Callable[[], MetricsPage], others: dict[int, Path]) -> bytes:
    """One exposition of this worker's page and those of the others. Raises Overloaded if one does not answer."""
    theirs = await asyncio.gather(*(_fetch(number, place) for number, place in others.items()))
    # In a thread: it takes milliseconds that streams need not wait for.
    return (await asyncio.to_thread(merge, [page(), *theirs])).encode()


async def _fetch(number: int, place: Path) -> MetricsPage:
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            request = await PeerRequest.send(place, "GET", b"/metrics")
            try:
                _, headers = await request.head()
                body = await request.body()
            finally:
                request.close()
    except (PeerError, TimeoutError):
        message = f"Worker {number} does not answer, and the numbers of the others alone would be wrong."
        raise Overloaded(message, retry_after_s=1) from None
    return MetricsPage(body.decode(), **orjson.loads(dict(headers)[_STATE]))


__all__ = ["PeerApp", "collect_metrics"]
