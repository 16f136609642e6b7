"""The client's half of resumable streams: an httpx transport under which a streamed completion outlives its connection.

    OpenAI(base_url=..., http_client=httpx.Client(transport=ResumingTransport()))
    AsyncOpenAI(base_url=..., http_client=httpx.AsyncClient(transport=ResumingTransport()))

It asks the server to keep the stream (`X-Stream-Resumable`), hands on whole events only, and when the connection
breaks fetches the rest with `GET /v1/streams/{id}` from the last event handed on. A server that does not know the
header is talked to as if this transport were not there. It never pretends: a stream that cannot be brought to its
`[DONE]` ends in the network error that broke it.

`events` and `resumption` decide, without IO; `transport` reads, waits and connects. Nothing here is used by the
server, and nothing of the server is used here.
"""

from __future__ import annotations

from gateway.client.sse_events import EventsLost
from gateway.client.transport import ResumingTransport

__all__ = ["EventsLost", "ResumingTransport"]
