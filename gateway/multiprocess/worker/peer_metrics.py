"""The app that a worker serves to the others, and the metrics page of all workers.

When a worker does not answer, the scrape fails: Prometheus would take sums without its part for counters that have
been reset, and every rate after that would be wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import orjson

from gateway.asgi import send_whole
from gateway.errors import Overloaded
from gateway.multiprocess.worker.metrics_merge import MetricsPage, merge
from gateway.multiprocess.worker.peer_client import PeerError, PeerRequest
from gateway.multiprocess.worker.peer_proxy import HOLDS_PATH

# A scrape has ten seconds by Prometheus' default; a later answer would come too late.
_ANSWER_WITHIN_S = 5.0
_STATE = b"x-sluice-state"
_TEXT = b"text/plain; charset=utf-8"


class PeerApp:
    """The ASGI app on a worker's own socket, which only the other workers can reach: its metrics, whether it has a
    request, and `app` for the requests that they forward."""

    def __init__(self, app: Any, page: Callable[[], MetricsPage], has_request: Callable[[str], bool]) -> None:
        self._app = app
        self._page = page
        self._has_request = has_request

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/metrics":
            page = self._page()
            state = {"stats_received_s": page.stats_received_s, "has_requests": page.has_requests}
            await _answer(send, 200, page.text.encode(), (_STATE, orjson.dumps(state)))
        elif path.startswith(HOLDS_PATH):
            await _answer(send, 200 if self._has_request(path.removeprefix(HOLDS_PATH)) else 404, b"")
        else:
            await self._app(scope, receive, send)


async def _answer(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    lines = [(b"content-type", _TEXT), (b"content-length", b"%d" % len(body)), *headers]
    await send_whole(send, status, lines, body)


async def collect_metrics(page: Callable[[], MetricsPage], peers: Mapping[int, Path]) -> bytes:
    """One page of this worker's metrics and those of its peers. Raises Overloaded if a peer does not answer."""
    fetched = await asyncio.gather(*(_fetch(number, path) for number, path in peers.items()))
    # In a thread: it takes milliseconds, and streams need not wait for it.
    return (await asyncio.to_thread(merge, [page(), *fetched])).encode()


async def _fetch(number: int, path: Path) -> MetricsPage:
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            request = await PeerRequest.send(path, "GET", b"/metrics")
            try:
                _, headers = await request.head()
                body = await request.body()
            finally:
                request.close()
    except (PeerError, TimeoutError):
        message = f"Worker {number} does not answer, and the metrics of the other workers alone would be wrong."
        raise Overloaded(message, retry_after_s=1) from None
    return MetricsPage(body.decode(), **orjson.loads(dict(headers)[_STATE]))
