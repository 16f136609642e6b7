from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ClientError
from gateway.protocols import sse
from tests.support.asgi import read_events

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5)


@given(TEXTS)
def test_an_event_is_one_data_line_and_a_blank_one(texts: list[str]) -> None:
    """A raw line break inside would cut the document in two; JSON escapes every one that SSE has (CR, LF)."""
    framed = sse.events([orjson.dumps(text) for text in texts])

    assert framed.count(b"\n") == 2 * len(texts)
    assert b"\r" not in framed
    assert read_events(framed) == [(None, text) for text in texts]


@given(TEXTS, st.integers(1, 10**9))
def test_numbered_events_count_on_from_the_first(texts: list[str], first: int) -> None:
    framed = sse.numbered([orjson.dumps(text) for text in texts], first)

    assert read_events(framed) == [(first + index, text) for index, text in enumerate(texts)]


@given(TEXTS, st.integers(0, 5), st.integers(1, 10**9))
def test_events_in_two_sends_are_the_bytes_of_one(texts: list[str], cut: int, first: int) -> None:
    documents = [orjson.dumps(text) for text in texts]
    cut = min(cut, len(documents))

    assert sse.events(documents[:cut]) + sse.events(documents[cut:]) == sse.events(documents)
    assert sse.numbered(documents[:cut], first) + sse.numbered(documents[cut:], first + cut) == sse.numbered(
        documents, first
    )


def test_the_framing_byte_by_byte() -> None:
    assert sse.events([]) == sse.numbered([], 1) == b""
    assert sse.events([b"1", b"[DONE]"]) == b"data: 1\n\ndata: [DONE]\n\n"
    assert sse.numbered([b"1", b"[DONE]"], 7) == b"id: 7\ndata: 1\n\nid: 8\ndata: [DONE]\n\n"


def test_keep_alive_is_a_line_before_the_next_event_and_nothing_that_a_decoder_could_take_for_one() -> None:
    assert sse.KEEP_ALIVE == b": keep-alive\n"
    for framed in (sse.events([b"1"]), sse.numbered([b"1"], 3)):
        lines = (sse.KEEP_ALIVE * 2 + framed + sse.KEEP_ALIVE + framed).split(b"\n")
        # As decoders do that dispatch at every blank line.
        events = b"\n".join(lines[:-1]).split(b"\n\n")

        assert all(b"data: 1" in event for event in events if event)
    assert read_events(sse.KEEP_ALIVE + sse.events([b"1"])) == [(None, 1)]
    assert read_events(sse.KEEP_ALIVE * 2 + sse.numbered([b"1"], 3)) == [(3, 1)]


def test_the_headers_forbid_caching_compressing_and_buffering() -> None:
    assert dict(sse.HEADERS) == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache, no-transform",
        b"x-accel-buffering": b"no",
    }


@pytest.mark.parametrize(
    ("header", "query", "number"),
    [(None, None, 0), ("", "", 0), ("0", None, 0), ("17", None, 17), (None, "17", 17), ("", "3", 3), ("5", "3", 5)],
)
def test_a_cursor_is_taken_from_the_header_else_from_the_query(
    header: str | None, query: str | None, number: int
) -> None:
    assert sse.cursor(header, query) == number


@pytest.mark.parametrize("text", ["x", "-1", "1.5", " 1", "+1", "٣", "²", "1" * 19, "0x1"])
def test_a_cursor_that_is_no_number_is_named_by_where_it_stood(text: str) -> None:
    with pytest.raises(ClientError, match="Last-Event-ID") as header:
        sse.cursor(text, "1")
    with pytest.raises(ClientError, match="starting_after") as query:
        sse.cursor(None, text)

    assert (header.value.param, query.value.param) == ("Last-Event-ID", "starting_after")


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("library", ["openai", "anthropic"])
def test_decoders_of_official_clients_take_a_sign_of_life_for_nothing(library: str, size: int) -> None:
    """Before any event, between two, after an id; asked directly, as their clients hide what they skip."""
    streaming = pytest.importorskip(f"{library}._streaming")
    plain = sse.KEEP_ALIVE * 2 + sse.events([b"1"]) + sse.KEEP_ALIVE + sse.events([b"2", b"[DONE]"])
    resumable = sse.KEEP_ALIVE + sse.numbered([b"1"], 1) + sse.KEEP_ALIVE * 3 + sse.numbered([b"2", b"[DONE]"], 2)
    for body in (plain, resumable):
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        found = [event.data for event in streaming.SSEDecoder().iter_bytes(iter(pieces))]

        assert found == ["1", "2", "[DONE]"]
