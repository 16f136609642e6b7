"""When to try again, and when an outage has lasted too long."""

from __future__ import annotations

import itertools

import httpx
import pytest

from tests.support.cutting_server import KEEP_ALIVE
from tests.support.http_callers import STREAMING, Caller, Waits
from tests.support.resumption_server import EVENTS, URL, Peer, broken, refusing, streaming


def test_pauses_double_up_to_the_limit(caller: Caller, waits: Waits) -> None:
    peer = Peer(streaming(EVENTS[0], broken()), *[httpx.ConnectError("down")] * 5, streaming(*EVENTS[1:]))
    with caller(waits.transport(peer.inner, backoff_s=1.0, max_backoff_s=5.0)) as client:
        received = client.ask(URL)

    assert (received.body, received.error) == (b"".join(EVENTS), None)
    assert waits.pauses_s == [1, 2, 4, 5, 5, 5]


def test_pauses_are_spread_over_their_whole_range(waits: Waits) -> None:
    peer = Peer(streaming(EVENTS[0], broken()), refusing(502), refusing(502), streaming(*EVENTS[1:]))
    chances = itertools.cycle([0.0, 0.5])
    with httpx.Client(transport=waits.transport(peer.inner, backoff_s=1.0, jitter=lambda: next(chances))) as client:
        client.post(URL, json=STREAMING)

    assert waits.pauses_s == [0, 1, 0]


def test_pauses_begin_anew_after_progress(caller: Caller, waits: Waits) -> None:
    down = httpx.ConnectError("down")
    peer = Peer(streaming(EVENTS[0], broken()), down, down, streaming(EVENTS[1], broken()), down, streaming(EVENTS[2]))
    with caller(waits.transport(peer.inner, backoff_s=1.0)) as client:
        assert client.ask(URL).body == b"".join(EVENTS)

    assert waits.pauses_s == [1, 2, 4, 1, 2]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for_and_the_spread_comes_on_top(caller: Caller, waits: Waits, status: int) -> None:
    peer = Peer(streaming(EVENTS[0], broken()), refusing(status, {"Retry-After": "7"}), streaming(*EVENTS[1:]))
    with caller(waits.transport(peer.inner, backoff_s=1.0)) as client:
        assert client.ask(URL).body == b"".join(EVENTS)

    assert waits.pauses_s == [1, 7 + 2]


@pytest.mark.parametrize("nonsense", ["Wed, 21 Oct 2015 07:28:00 GMT", "-1", "nan", "inf"])
def test_a_retry_after_without_seconds_is_ignored(waits: Waits, nonsense: str) -> None:
    peer = Peer(streaming(EVENTS[0], broken()), refusing(503, {"Retry-After": nonsense}), streaming(*EVENTS[1:]))
    with httpx.Client(transport=waits.transport(peer.inner, backoff_s=1.0)) as client:
        assert client.post(URL, json=STREAMING).content == b"".join(EVENTS)

    assert waits.pauses_s == [1, 2]


def test_a_retry_after_beyond_the_servers_own_grace_is_not_waited_for(caller: Caller, waits: Waits) -> None:
    error = broken()
    peer = Peer(streaming(EVENTS[0], error), refusing(503, {"Retry-After": "31"}))
    with caller(waits.transport(peer.inner)) as client:
        assert client.ask(URL).error is error

    assert len(peer.requests) == 2


def test_an_outage_longer_than_the_granted_grace_ends_in_the_error_that_began_it(caller: Caller, waits: Waits) -> None:
    """The server's answer has the time that it grants (30 s), which may be less than was asked for."""
    error = broken()
    peer = Peer(streaming(EVENTS[0], error), httpx.ConnectError("down"))
    with caller(waits.transport(peer.inner, grace_s=600.0)) as client:
        received = client.ask(URL)

    assert received.error is error
    assert received.body == EVENTS[0]
    assert received.notes == ["stream chatcmpl-1 was not resumed after event 1: not back within 30 s"]
    # The last attempt is made at the very end of the time.
    assert sum(waits.pauses_s) == pytest.approx(30)


def test_connections_that_bring_nothing_new_are_no_progress(caller: Caller, waits: Waits) -> None:
    """A proxy that cuts every answer at the same place, or repeats the beginning, must not keep a client for ever."""
    error = broken()
    peer = Peer(streaming(EVENTS[0], error), *[streaming(EVENTS[0], EVENTS[1][:-1], broken())] * 100)
    with caller(waits.transport(peer.inner)) as client:
        received = client.ask(URL)

    assert received.error is error
    assert received.body == EVENTS[0]
    assert sum(waits.pauses_s) == pytest.approx(30)


def test_keep_alives_of_a_resumed_connection_end_the_outage(caller: Caller, waits: Waits) -> None:
    """A stream that still waits for its first token may lose many connections, each of them alive for a while."""
    quiet = [streaming(KEEP_ALIVE, broken()) for _ in range(100)]
    peer = Peer(*quiet, streaming(*EVENTS))
    with caller(waits.transport(peer.inner, backoff_s=1.0)) as client:
        assert client.ask(URL).body == b"".join(EVENTS)

    assert waits.pauses_s == [1] * 100
