"""The client side of resumable streams: an httpx transport with which a streamed completion survives lost connections.

    OpenAI(base_url=..., http_client=httpx.Client(transport=ResumingTransport()))
    AsyncOpenAI(base_url=..., http_client=httpx.AsyncClient(transport=ResumingTransport()))

It requests a resumable stream (`X-Stream-Resumable`), passes on whole events only, and after a broken connection
fetches the rest with `GET /v1/streams/{id}` from the last event passed on. With a server that does not support the
header it changes nothing. A stream that cannot be continued up to its `[DONE]` ends with the network error that broke
it.

`sse_events` and `resumption` hold the rules, without IO; `transport` reads, waits and connects. The server does not use
this package, and this package uses nothing of the server but its `clock`.
"""

from __future__ import annotations

from gateway.client.sse_events import EventsLost
from gateway.client.transport import ResumingTransport

__all__ = ["EventsLost", "ResumingTransport"]
