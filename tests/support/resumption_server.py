"""A scripted server of resumable streams, as an inner transport of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping

import httpx

from tests.support.cutting_server import numbered

URL = "http://sluice/v1/chat/completions"


EVENTS = numbered([b'{"t":1}', b'{"t":2}'])


RESUMABLE = {"Content-Type": "text/event-stream", "X-Stream-Id": "chatcmpl-1", "X-Stream-Resumable": "30"}


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Some chunks, then perhaps a broken connection."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self._parts = parts
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


class Peer:
    """A scripted server: every request takes the next step, and the last step again when they are used up."""

    def __init__(self, *steps: httpx.Response | Exception) -> None:
        self._steps = steps
        self.requests: list[httpx.Request] = []
        self.inner = httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self._steps[min(len(self.requests), len(self._steps)) - 1]
        if isinstance(step, Exception):
            raise step
        return step


def streaming(*parts: bytes | Exception, **changes: str) -> httpx.Response:
    return httpx.Response(200, headers={**RESUMABLE, **changes}, stream=Body(*parts))


def refusing(status: int, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, headers=headers)


def broken() -> httpx.ReadError:
    return httpx.ReadError("the cable")
