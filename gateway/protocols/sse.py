"""Server-Sent Events framing (WHATWG HTML, section 9.2): one `data:` line per event, LF line ends, no BOM.

JSON documents hold no raw line break, so one event is always one line.
"""

from __future__ import annotations

from gateway.errors import ClientError

KEEP_ALIVE = b": keep-alive\n"
"""A comment line before the next event. Never followed by a blank line of its own: many decoders take each blank line
for the end of an event, and emit, or fail on, an empty one."""

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # no-transform keeps proxies from compressing, which would hold events back.
    (b"cache-control", b"no-cache, no-transform"),
    # nginx buffers upstream responses unless this header forbids it.
    (b"x-accel-buffering", b"no"),
)


def events(documents: list[bytes], first: int = 0) -> bytes:
    """Frame documents as events without ids; `first` is unused."""
    return b"data: " + b"\n\ndata: ".join(documents) + b"\n\n" if documents else b""


def numbered(documents: list[bytes], first: int) -> bytes:
    """Frame documents as events with the ids `first`, `first + 1`, ..."""
    if len(documents) == 1:
        return b"id: %d\ndata: %b\n\n" % (first, documents[0])
    return b"".join([b"id: %d\ndata: %b\n\n" % (first + index, document) for index, document in enumerate(documents)])


def cursor(last_event_id: str | None, starting_after: str | None) -> int:
    """The number of the last event that a resuming client has seen, 0 for none. The header wins over the query: an
    EventSource that reconnects by itself sends both.

    Raises ClientError that names the wrong one.
    """
    given = (("Last-Event-ID", last_event_id), ("starting_after", starting_after))
    for name, text in given:
        if text:
            # No stream has events with longer numbers, and a very long one is expensive to convert.
            if not (text.isascii() and text.isdigit() and len(text) <= 18):
                raise ClientError(f"{name} must be the number of an event, such as 17.", param=name)
            return int(text)
    return 0
