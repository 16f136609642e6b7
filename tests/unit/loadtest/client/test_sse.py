"""Parsing bytes into events, wherever they are split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client import sse
from loadtest.client.sse import Event, EventTooLarge, SseParser

STREAM = (
    b"\xef\xbb\xbf: welcome\n\n"
    b'data: {"a": 1}\n\n'
    b": keep-alive\nid: 7\ndata: two\n\n"
    b"event: x\ndata:no space\ndata:  second line\nretry: 5\n\n"
    b"id: 8\n\n"
    b"\n\n\ndata: \xf0\x9f\x98\x80\n\n"
    b"data: [DONE]\n\n"
)
EVENTS: list[Event] = [
    (None, b'{"a": 1}'),
    (b"7", b"two"),
    (None, b"no space\n second line"),
    (b"8", None),
    (None, b"\xf0\x9f\x98\x80"),
    (None, b"[DONE]"),
]


def parse(parts: list[bytes]) -> list[Event]:
    parser = SseParser()
    return [event for part in parts for event in parser.feed(part)]


@pytest.mark.parametrize("end_of_line", [b"\n", b"\r\n", b"\r"])
def test_parsing_at_once_and_byte_by_byte_is_the_same(end_of_line: bytes) -> None:
    stream = STREAM.replace(b"\n", end_of_line)

    assert parse([stream]) == EVENTS
    assert parse([stream[at : at + 1] for at in range(len(stream))]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_splits_anywhere_change_nothing(cuts: list[int], end_of_line: bytes) -> None:
    stream = STREAM.replace(b"\n", end_of_line)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parts = [stream[a:b] for a, b in pairwise(places)]

    assert parse(parts) == EVENTS


def test_an_event_comes_with_its_last_byte() -> None:
    """Not with the first byte of the next event."""
    parser = SseParser()

    assert parser.feed(b"data: a\r\n\r") == [(None, b"a")]
    assert parser.feed(b"\ndata: b\r\n\r\n") == [(None, b"b")]


def test_an_endless_event_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LIMIT_BYTES", 100)
    parser = SseParser()
    parser.feed(b"data: " + b"x" * 90)

    with pytest.raises(EventTooLarge):
        parser.feed(b"x" * 90)
