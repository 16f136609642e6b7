from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.sse_events import Events, EventsLost
from tests.support.cutting_server import KEEP_ALIVE, numbered

PAYLOADS = [b'{"t":"\xc3\xa9"}', b'{"t":"\xe2\x98\x83\xf0\x9f\x98\x80"}']
EVENTS = numbered(PAYLOADS)
# Comments may fall between any two events, and several may follow each other.
WHOLE = KEEP_ALIVE + EVENTS[0] + KEEP_ALIVE * 2 + EVENTS[1] + EVENTS[2] + KEEP_ALIVE

DATA = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=8).map(str.encode)
TRANSCRIPTS = st.lists(st.tuples(DATA, st.booleans()), max_size=6)


def fed(events: Events, *chunks: bytes) -> bytes:
    return b"".join(event for chunk in chunks for event in events.feed(chunk))


def pieces(whole: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[left:right] for left, right in itertools.pairwise(bounds)]


def drawn(transcript: list[tuple[bytes, bool]]) -> tuple[list[bytes], bytes]:
    """Events, and what a server sends that puts a comment before some of them."""
    events = numbered([data for data, _ in transcript])
    comments = [KEEP_ALIVE * slow for _, slow in transcript] + [b""]
    return events, b"".join(comment + event for comment, event in zip(comments, events, strict=True))


@given(TRANSCRIPTS, st.lists(st.integers(0, 10_000), max_size=8))
def test_any_chunking_gives_the_same_events_and_number(transcript: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    expected, whole = drawn(transcript)
    events = Events()

    assert fed(events, *pieces(whole, cuts)) == b"".join(expected)
    assert events.last_seq == len(expected)
    assert events.is_done


@given(TRANSCRIPTS, st.lists(st.integers(0, 10_000), max_size=5))
def test_however_often_and_wherever_it_is_cut_the_joined_bytes_are_those_of_the_uncut_stream(
    transcript: list[tuple[bytes, bool]], cuts: list[int]
) -> None:
    expected, _ = drawn(transcript)
    events, out = Events(), b""
    for cut in cuts:
        rest = KEEP_ALIVE + b"".join(expected[events.last_seq :])
        out += fed(events, rest[: cut % (len(rest) + 1)])
        events.restart()
    out += fed(events, b"".join(expected[events.last_seq :]))

    assert out == b"".join(expected)


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_a_cut_at_any_byte_leaves_whole_events_and_the_right_number(cut: int) -> None:
    events = Events()
    before = fed(events, WHOLE[:cut])

    assert before == b"".join(EVENTS[: events.last_seq])
    assert events.is_done == (before.endswith(b"data: [DONE]\n\n"))
    events.restart()
    assert before + fed(events, KEEP_ALIVE + b"".join(EVENTS[events.last_seq :])) == b"".join(EVENTS)


def test_an_event_is_returned_only_with_its_blank_line() -> None:
    events = Events()

    assert fed(events, EVENTS[0][:-1]) == b""
    assert fed(events, EVENTS[0][-1:]) == EVENTS[0]


def test_an_event_that_was_returned_before_is_dropped() -> None:
    """A proxy that drops Last-Event-ID makes the server start from the beginning."""
    events = Events()
    fed(events, EVENTS[0], EVENTS[1][:9])
    events.restart()

    assert fed(events, EVENTS[0]) == b""
    assert not events.is_alive
    assert fed(events, EVENTS[1], EVENTS[2]) == EVENTS[1] + EVENTS[2]


def test_a_missing_number_is_an_error_and_the_events_before_it_are_not_lost() -> None:
    found = Events().feed(EVENTS[0] + EVENTS[2])

    assert next(found) == EVENTS[0]
    with pytest.raises(EventsLost, match="event 3 came after event 1"):
        next(found)


def test_no_event_is_returned_after_done() -> None:
    events = Events()

    assert fed(events, *EVENTS, b"id: 4\ndata: more\n\n") == b"".join(EVENTS)
    assert events.last_seq == 3


def test_an_event_without_a_number_is_passed_on_and_not_resumed_from() -> None:
    for odd in (
        b"data: {}\n\n",
        b"id: x\ndata: {}\n\n",
        b"id: " + b"9" * 5000 + b"\ndata: {}\n\n",
        b"id\ndata: {}\n\n",
    ):
        events = Events()
        assert fed(events, EVENTS[0]) == EVENTS[0]
        events.restart()
        assert fed(events, odd) == odd
        assert (events.last_seq, events.is_alive, events.is_done) == (1, False, False)


def test_done_ends_the_stream_also_without_a_number() -> None:
    events = Events()

    assert fed(events, b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
    assert events.is_done


def test_crlf_and_a_missing_space_are_understood_and_kept() -> None:
    events = Events()
    whole = b"id:1\r\ndata:{}\r\n\r\nid:2\r\ndata:[DONE]\r\n\r\n"

    assert fed(events, *(whole[at : at + 1] for at in range(len(whole)))) == whole
    assert (events.last_seq, events.is_done) == (2, True)


def test_a_comment_in_a_block_of_its_own_is_dropped() -> None:
    """openai-python would crash on it once events carry ids."""
    assert fed(Events(), EVENTS[0] + b": ping\n\n" + EVENTS[1]) == EVENTS[0] + EVENTS[1]


def test_a_comment_shows_that_the_connection_is_alive() -> None:
    events = Events()
    fed(events, KEEP_ALIVE)
    assert events.is_alive
    events.restart()
    assert not events.is_alive


@given(st.lists(st.binary(max_size=30)), st.binary(max_size=30))
def test_garbage_raises_nothing_but_the_documented_error(chunks: list[bytes], head: bytes) -> None:
    events = Events()
    with contextlib.suppress(EventsLost):
        fed(events, head + b"\nid: ", *chunks)
