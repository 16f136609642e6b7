"""Server-Sent Events framing (WHATWG HTML, section 9.2): one `data:` line per event, LF line ends, no BOM.

JSON documents hold no raw line break, so one event is always one line.
"""

from __future__ import annotations

DONE = b"data: [DONE]\n\n"
"""What OpenAI clients wait for: after it nothing follows."""

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment of its own; every client copes with it on a stream whose events carry no id."""

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # no-transform keeps proxies from compressing, which would hold events back.
    (b"cache-control", b"no-cache, no-transform"),
    # nginx buffers upstream responses unless told otherwise by this header.
    (b"x-accel-buffering", b"no"),
)


def event(payload: bytes) -> bytes:
    """Frame one JSON document as an event."""
    return b"data: " + payload + b"\n\n"


__all__ = ["DONE", "HEADERS", "KEEP_ALIVE", "event"]
