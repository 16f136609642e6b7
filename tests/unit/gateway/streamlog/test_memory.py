from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import Cause
from gateway.errors import EngineFailed, Expired
from gateway.streamlog.base import Batch, Ended
from gateway.streamlog.memory import MemoryLog

DONE = Ended(Cause.COMPLETED)
# What one event weighs besides its content.
OVERHEAD = 41
KINDS = pytest.mark.parametrize("keep_bytes", [None, 10_000])


@KINDS
def test_a_fresh_log_is_empty(keep_bytes: int | None) -> None:
    log = MemoryLog(keep_bytes)

    assert (log.is_retaining, log.last, log.size_bytes, log.read(0)) == (keep_bytes is not None, 0, 0, None)


@KINDS
def test_events_get_numbers_from_1_without_gaps(keep_bytes: int | None) -> None:
    log = MemoryLog(keep_bytes)
    log.append([b"a", b"b"])

    assert log.last == 2
    assert log.read(0) == Batch(1, [b"a", b"b"], None)
    assert log.read(2) is None

    log.append([])
    log.append([b"c"])

    assert log.last == 3
    assert log.read(2) == Batch(3, [b"c"], None)


@KINDS
def test_the_end_comes_with_the_last_events_and_stays_readable(keep_bytes: int | None) -> None:
    log = MemoryLog(keep_bytes)
    log.append([b"a"])
    log.close(DONE, [b"[DONE]"])

    assert log.read(0) == Batch(1, [b"a", b"[DONE]"], DONE)
    assert log.read(2) == Batch(3, [], DONE)


@KINDS
def test_the_end_alone_is_news(keep_bytes: int | None) -> None:
    log = MemoryLog(keep_bytes)
    log.close(DONE, [])

    assert log.read(0) == Batch(1, [], DONE)


@KINDS
def test_after_the_end_nothing_is_taken_in(keep_bytes: int | None) -> None:
    log = MemoryLog(keep_bytes)
    log.close(DONE, [b"[DONE]"])
    size_bytes = log.size_bytes
    log.append([b"late"])
    log.close(Ended(Cause.ENGINE_FAILED, EngineFailed("Down.")), [b"error"])

    assert (log.last, log.size_bytes) == (1, size_bytes)
    assert log.read(0) == Batch(1, [b"[DONE]"], DONE)


def test_a_plain_log_forgets_what_it_has_handed_over() -> None:
    log = MemoryLog()
    log.append([b"a", b"b"])
    log.read(0)
    log.append([b"c"])

    assert log.size_bytes == 0
    with pytest.raises(Expired):
        log.read(0)
    with pytest.raises(Expired):
        log.read(1)
    assert log.read(2) == Batch(3, [b"c"], None)


def test_a_plain_log_skips_what_its_reader_has_seen_elsewhere() -> None:
    log = MemoryLog()
    log.append([b"a", b"b", b"c"])

    assert log.read(1) == Batch(2, [b"b", b"c"], None)
    assert log.last == 3


def test_a_log_that_keeps_can_be_read_from_anywhere_any_number_of_times() -> None:
    log = MemoryLog(10_000)
    log.append([b"a", b"b"])
    log.close(DONE, [b"c"])

    for cursor in (0, 1, 2, 3, 0):
        assert log.read(cursor) == Batch(cursor + 1, [b"a", b"b", b"c"][cursor:], DONE)


def test_kept_events_count_with_their_bytes_and_a_slot_each() -> None:
    log = MemoryLog(10_000)
    log.append([b"abc", b""])

    assert log.size_bytes == 3 + 2 * OVERHEAD


def test_beyond_its_limit_the_oldest_events_go_and_their_readers_get_an_error() -> None:
    """Down to three quarters, so that not every event comes with a trim."""
    weight = 59 + OVERHEAD
    log = MemoryLog(10 * weight)
    log.append([b"%059d" % number for number in range(10)])

    assert log.size_bytes == 10 * weight, "the limit itself still fits"

    log.append([b"%059d" % 10])

    assert log.size_bytes == 7 * weight
    assert log.last == 11
    with pytest.raises(Expired, match="after number 3 are kept no longer"):
        log.read(3)
    assert log.read(4) == Batch(5, [b"%059d" % number for number in range(4, 11)], None)


def test_an_event_larger_than_the_limit_is_kept_all_the_same() -> None:
    """The newest event must reach those who follow."""
    log = MemoryLog(100)
    log.append([b"a"])
    log.append([b"x" * 500])

    assert log.read(1) == Batch(2, [b"x" * 500], None)
    with pytest.raises(Expired):
        log.read(0)


def test_a_narrower_limit_holds_at_once() -> None:
    log = MemoryLog(1000)
    log.append([b"x" * 59] * 8)
    log.set_limit(200)

    assert log.size_bytes <= 200
    assert log.read(7) == Batch(8, [b"x" * 59], None)

    plain = MemoryLog()
    plain.append([b"a", b"b"])
    plain.set_limit(1)

    assert plain.read(0) == Batch(1, [b"a", b"b"], None)


@given(
    st.lists(st.lists(st.binary(max_size=60), max_size=5), max_size=20),
    st.integers(100, 2000),
    st.integers(0, 100),
)
def test_kept_events_are_always_a_suffix_of_the_appended_ones_within_the_limit(
    batches: list[list[bytes]], keep_bytes: int, cursor: int
) -> None:
    """Invariant I2: gapless and append-only, whatever is trimmed."""
    log = MemoryLog(keep_bytes)
    everything: list[bytes] = []
    for batch in batches:
        log.append(batch)
        everything += batch

        assert log.last == len(everything)
        assert log.size_bytes <= max(keep_bytes, len(everything[-1]) + OVERHEAD if everything else 0)

    cursor = min(cursor, len(everything))
    try:
        read = log.read(cursor)
    except Expired:
        kept = everything[cursor:]
        assert sum(map(len, kept)) + OVERHEAD * len(kept) > keep_bytes * 3 // 4
    else:
        assert read == (Batch(cursor + 1, everything[cursor:], None) if everything[cursor:] else None)


@given(
    st.lists(st.lists(st.binary(min_size=1).map(lambda text: text.replace(b"\n", b"n")), max_size=4), max_size=8),
    st.data(),
)
def test_packing_changes_nothing_that_can_be_read(batches: list[list[bytes]], data: st.DataObject) -> None:
    log, plain = MemoryLog(), MemoryLog()
    cursor = 0
    for documents in batches:
        for one in (log, plain):
            one.append(documents)
        if data.draw(st.booleans()):
            log.compress()
        assert log.last == plain.last
        if data.draw(st.booleans()):
            batch = log.read(cursor)
            assert batch == plain.read(cursor)
            cursor = log.last
    log.close(DONE, [b"[DONE]"])
    plain.close(DONE, [b"[DONE]"])
    assert log.read(cursor) == plain.read(cursor)
    assert log.size_bytes == 0


def test_a_log_that_keeps_is_not_packed() -> None:
    log = MemoryLog(10_000)
    log.append([b"a" * 1000])
    log.compress()

    assert log.size_bytes == 1000 + OVERHEAD
    assert log.read(0) == Batch(1, [b"a" * 1000], None)
