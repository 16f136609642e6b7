"""Aggregates: the place where each event counts, and the equality of merged workers and a single one."""

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
    """A stream: started 1 ms late, sent 1 ms later, its first token 100 ms after that, then gaps."""
    stats = Record(1, 1, "chat", "anna", "m", True, ReadMode.PLAIN, due_ns)
    stats.started_ns, stats.sent_ns = due_ns + MS, due_ns + 2 * MS
    at_ns = stats.sent_ns + 100 * MS
    for gap in (0.0, *gaps_ms):
        at_ns += int(gap * MS)
        stats.content_ns.append(at_ns)
        stats.content_tokens.append(1)
    stats.first_byte_ns, stats.done_ns, stats.ended_ns = stats.content_ns[0], at_ns, at_ns
    stats.status, stats.prompt_tokens, stats.output_tokens = 200, 7, len(stats.content_ns)
    for name, value in changes.items():
        setattr(stats, name, value)
    return stats


def aggregate(*records: Record, **limits: float) -> Aggregates:
    aggregates = Aggregates(limits)
    for stats in records:
        aggregates.on_due(WINDOW, stats.intended_ns)
        aggregates.on_started(WINDOW, stats)
        aggregates.on_ended(WINDOW, stats)
    return aggregates


def test_times_count_from_due_and_from_sent() -> None:
    aggregates = aggregate(record()).overall()

    assert aggregates.ttft.mean == 102_000
    assert aggregates.ttft_sent.mean == 100_000
    assert (aggregates.e2e.mean, aggregates.e2e_sent.mean) == (132_000, 130_000)
    assert (aggregates.itl.count, aggregates.itl.total, aggregates.stall.largest) == (2, 30_000, 20_000)
    assert aggregates.tpot.mean == 15_000


def test_events_count_in_the_second_in_which_they_happened() -> None:
    aggregates = aggregate(record(gaps_ms=(300, 800)))

    assert {number: stats.output_tokens for number, stats in aggregates.seconds.items() if stats.output_tokens} == {
        2: 2,
        3: 1,
    }
    assert (aggregates.second(2).due, aggregates.second(2).ttft.count, aggregates.second(2).itl.count) == (1, 1, 1)
    assert (aggregates.second(3).ended, aggregates.second(3).ok, aggregates.second(3).e2e.count) == (1, 1, 1)


@pytest.mark.parametrize("due_ns", [101 * SECOND, 112 * SECOND])
def test_warm_up_and_drain_count_in_the_seconds_alone(due_ns: int) -> None:
    aggregates = aggregate(record(due_ns))

    assert aggregates.overall().requests == 0
    assert (aggregates.due_count, aggregates.sent_count, aggregates.lateness.count, aggregates.checked_streams) == (
        0,
        0,
        0,
        0,
    )
    assert sum(stats.ended for stats in aggregates.seconds.values()) == 1


def test_tokens_count_when_they_come() -> None:
    """A stream of the warm-up that goes on into the measured stage is load there, too."""
    aggregates = aggregate(record(101 * SECOND, gaps_ms=(500, 800)))

    assert aggregates.overall().output_tokens == 1
    assert aggregates.overall().itl.count == 0


def test_aborted_and_failed_requests_have_no_duration() -> None:
    left = record(left_by_plan=True, read_mode=ReadMode.CANCEL)
    cut = record(error=ErrorKind.TRUNCATED)
    aggregates = aggregate(left, cut, ttft_ms=1000.0)
    overall = aggregates.overall()

    assert (overall.requests, overall.ok, overall.cancelled, overall.good) == (2, 0, 1, 0)
    assert overall.errors == {"truncated": 1}
    assert (overall.ttft.count, overall.itl.count) == (2, 4), "what they had of the server was real"
    assert (overall.e2e.count, overall.tpot.count) == (0, 0)
    assert aggregates.violations == {"truncated": 1}
    assert "truncated" in aggregates.examples[0]


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
    aggregates = aggregate(record(read_mode=read_mode)).overall()

    assert (aggregates.ttft.count, aggregates.itl.count) == (ttft, gaps)
    assert aggregates.ok == 1


def test_a_timeout_counts_as_time_to_first_token() -> None:
    stats = record(error=ErrorKind.TIMEOUT_FIRST, ended_ns=DUE + 60 * SECOND, done_ns=0)
    del stats.content_ns[:], stats.content_tokens[:]

    assert aggregate(stats).overall().ttft.largest == 60_000_000


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
    assert aggregate(record(), **limits).overall().good == good


def test_a_dropped_arrival_is_due_and_an_error() -> None:
    aggregates = Aggregates()
    aggregates.on_due(WINDOW, DUE)
    aggregates.on_dropped(WINDOW, DUE, "chat", "anna")

    assert (aggregates.due_count, aggregates.sent_count, aggregates.dropped_count) == (1, 0, 1)
    assert aggregates.overall().errors == {"dropped_arrival": 1}
    assert aggregates.second(2).errors == {"dropped_arrival": 1}


def test_a_request_started_too_late_does_not_count_as_sent() -> None:
    late = record(started_ns=WINDOW.drain_ns + SECOND)

    assert (aggregate(late).due_count, aggregate(late).sent_count) == (1, 0)


def test_counting_a_long_stream_yields_to_the_loop() -> None:
    yields: list[int] = []
    Aggregates().on_ended(WINDOW, record(gaps_ms=(1.0,) * 1000), lambda: yields.append(1))

    assert len(yields) == 3


def test_merged_workers_equal_a_single_one() -> None:
    """In several reports, too: workers report the increase every three seconds."""
    rng = Random(1)
    records = [
        record(
            100 * SECOND + rng.randrange(13 * SECOND),
            tuple(rng.uniform(1, 400) for _ in range(rng.randrange(1, 20))),
            workload=rng.choice("ab"),
            tenant=rng.choice("xy"),
            error=rng.choice([None, None, ErrorKind.HTTP_429, ErrorKind.CROSS_TALK]),
            verified_tokens=3,
        )
        for _ in range(300)
    ]
    together = Aggregates()
    for part in range(6):
        piece = aggregate(*records[part::6])
        together.merge(json.loads(json.dumps(piece.take_delta())))
        together.merge(piece.take_delta())
    alone = aggregate(*records).take_delta()
    merged = together.take_delta()
    for stats in (alone, merged):
        stats["groups"].sort(key=lambda group: group[:2])
        stats["seconds"].sort(key=lambda second: second[0])
        stats.pop("examples")

    assert merged == alone
