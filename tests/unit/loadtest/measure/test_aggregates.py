"""Tallies: what counts where, and that the sum over workers is what one worker would have counted."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from loadtest.measure.aggregates import Aggregates, Window
from loadtest.measure.record import ReadMode, Record
from loadtest.measure.result import ErrorKind

MS = 1_000_000
SECOND = 1000 * MS
WINDOW = Window.from_stages(100 * SECOND, 2.0, 10.0)
# In the third second of the run, the first of the measured stage.
DUE = 102 * SECOND + 500 * MS


def record(due_ns: int = DUE, gaps_ms: tuple[float, ...] = (10, 20), **changes: Any) -> Record:
    """A stream: begun 1 ms late, sent 1 ms later, its first token 100 ms after that, then gaps."""
    one = Record(1, 1, "chat", "anna", "m", True, ReadMode.PLAIN, due_ns)
    one.started_ns, one.sent_ns = due_ns + MS, due_ns + 2 * MS
    at_ns = one.sent_ns + 100 * MS
    for gap in (0.0, *gaps_ms):
        at_ns += int(gap * MS)
        one.content_ns.append(at_ns)
        one.content_tokens.append(1)
    one.first_byte_ns, one.done_ns, one.ended_ns = one.content_ns[0], at_ns, at_ns
    one.status, one.prompt_tokens, one.output_tokens = 200, 7, len(one.content_ns)
    for name, value in changes.items():
        setattr(one, name, value)
    return one


def tally(*records: Record, **limits: float) -> Aggregates:
    made = Aggregates(limits)
    for one in records:
        made.on_due(WINDOW, one.intended_ns)
        made.on_started(WINDOW, one)
        made.on_ended(WINDOW, one)
    return made


def test_times_count_from_due_and_from_sent() -> None:
    found = tally(record()).overall()

    assert found.ttft.mean == 102_000
    assert found.ttft_sent.mean == 100_000
    assert (found.e2e.mean, found.e2e_sent.mean) == (132_000, 130_000)
    assert (found.itl.count, found.itl.total, found.stall.largest) == (2, 30_000, 20_000)
    assert found.tpot.mean == 15_000


def test_events_count_in_the_second_in_which_they_happened() -> None:
    found = tally(record(gaps_ms=(300, 800)))

    assert {number: one.output_tokens for number, one in found.seconds.items() if one.output_tokens} == {2: 2, 3: 1}
    assert (found.second(2).due, found.second(2).ttft.count, found.second(2).itl.count) == (1, 1, 1)
    assert (found.second(3).ended, found.second(3).ok, found.second(3).e2e.count) == (1, 1, 1)


@pytest.mark.parametrize("due_ns", [101 * SECOND, 112 * SECOND])
def test_warm_up_and_drain_count_in_the_seconds_alone(due_ns: int) -> None:
    found = tally(record(due_ns))

    assert found.overall().requests == 0
    assert (found.due_count, found.sent_count, found.lateness.count, found.checked_streams) == (0, 0, 0, 0)
    assert sum(one.ended for one in found.seconds.values()) == 1


def test_tokens_count_when_they_come() -> None:
    """A stream of the warm-up that goes on into the measured stage is load there, too."""
    found = tally(record(101 * SECOND, gaps_ms=(500, 800)))

    assert found.overall().output_tokens == 1
    assert found.overall().itl.count == 0


def test_aborted_and_failed_requests_have_no_duration() -> None:
    left = record(left_by_plan=True, read_mode=ReadMode.CANCEL)
    cut = record(error=ErrorKind.TRUNCATED)
    found = tally(left, cut, ttft_ms=1000.0)
    whole = found.overall()

    assert (whole.requests, whole.ok, whole.cancelled, whole.good) == (2, 0, 1, 0)
    assert whole.errors == {"truncated": 1}
    assert (whole.ttft.count, whole.itl.count) == (2, 4), "what they had of the server was real"
    assert (whole.e2e.count, whole.tpot.count) == (0, 0)
    assert found.violations == {"truncated": 1}
    assert "truncated" in found.examples[0]


@pytest.mark.parametrize(
    ("read_mode", "ttft", "gaps"),
    [
        (ReadMode.SLOW, 0, 0),
        (ReadMode.STALL, 1, 0),
        (ReadMode.RESUME, 1, 0),
        (ReadMode.CANCEL, 1, 2),
        (ReadMode.PLAIN, 1, 2),
    ],
)
def test_times_that_a_client_distorts_do_not_count(read_mode: ReadMode, ttft: int, gaps: int) -> None:
    found = tally(record(read_mode=read_mode)).overall()

    assert (found.ttft.count, found.itl.count) == (ttft, gaps)
    assert found.ok == 1


def test_a_timeout_counts_as_time_to_first_token() -> None:
    one = record(error=ErrorKind.TIMEOUT_FIRST, ended_ns=DUE + 60 * SECOND, done_ns=0)
    del one.content_ns[:], one.content_tokens[:]

    assert tally(one).overall().ttft.largest == 60_000_000


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ({}, 1),
        ({"ttft_ms": 102}, 1),
        ({"ttft_ms": 101}, 0),
        ({"tpot_ms": 14}, 0),
        ({"e2e_ms": 131}, 0),
        ({"e2e_ms": 132}, 1),
    ],
)
def test_good_is_within_every_limit(limits: dict[str, float], good: int) -> None:
    assert tally(record(), **limits).overall().good == good


def test_a_dropped_arrival_is_due_and_an_error() -> None:
    found = Aggregates()
    found.on_due(WINDOW, DUE)
    found.on_dropped(WINDOW, DUE, "chat", "anna")

    assert (found.due_count, found.sent_count, found.dropped_count) == (1, 0, 1)
    assert found.overall().errors == {"dropped_arrival": 1}
    assert found.second(2).errors == {"dropped_arrival": 1}


def test_a_request_started_too_late_does_not_count_as_sent() -> None:
    late = record(started_ns=WINDOW.drain_ns + SECOND)

    assert (tally(late).due_count, tally(late).sent_count) == (1, 0)


def test_counting_a_long_stream_yields_to_the_loop() -> None:
    breaths: list[int] = []
    Aggregates().on_ended(WINDOW, record(gaps_ms=(1.0,) * 1000), lambda: breaths.append(1))

    assert len(breaths) == 3


def test_merged_workers_equal_a_single_one() -> None:
    """In pieces, too: workers report what is new every three seconds."""
    chance = Random(1)
    records = [
        record(
            100 * SECOND + chance.randrange(13 * SECOND),
            tuple(chance.uniform(1, 400) for _ in range(chance.randrange(1, 20))),
            workload=chance.choice("ab"),
            tenant=chance.choice("xy"),
            error=chance.choice([None, None, ErrorKind.HTTP_429, ErrorKind.CROSS_TALK]),
            verified_tokens=3,
        )
        for _ in range(300)
    ]
    together = Aggregates()
    for part in range(6):
        piece = tally(*records[part::6])
        together.merge(json.loads(json.dumps(piece.take_delta())))
        together.merge(piece.take_delta())
    alone = tally(*records).take_delta()
    merged = together.take_delta()
    for one in (alone, merged):
        one["groups"].sort(key=lambda group: group[:2])
        one["seconds"].sort(key=lambda second: second[0])
        one.pop("examples")

    assert merged == alone
