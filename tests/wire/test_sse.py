from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import sse


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_event_is_one_data_line_and_a_blank_one(text: str) -> None:
    """A raw line break inside would cut the document in two; JSON escapes every one that SSE knows (CR, LF)."""
    framed = sse.event(orjson.dumps(text))

    assert framed.startswith(b"data: ")
    assert framed.endswith(b"\n\n")
    assert framed.count(b"\n") == 2
    assert b"\r" not in framed
    assert orjson.loads(framed.removeprefix(b"data: ")) == text


def test_done_is_an_event_and_keep_alive_a_comment_of_its_own() -> None:
    assert sse.event(b"[DONE]") == sse.DONE
    assert sse.KEEP_ALIVE == b": keep-alive\n\n"


def test_the_headers_forbid_caching_compressing_and_buffering() -> None:
    assert dict(sse.HEADERS) == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache, no-transform",
        b"x-accel-buffering": b"no",
    }
