from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.domain import Delta
from gateway.errors import (
    Cancelled,
    Expired,
    Overloaded,
)
from gateway.streams import retention as retention_module
from gateway.streams.retention import FinishedStreams
from gateway.streams.stream import Stream
from tests.support.harness import STREAM_LIMITS, PlainProtocol, StreamHarness, WriterHarness, cause
from tests.support.instrumentation import a_caller
from tests.support.time import clock, in_virtual_time, settle

# What the two events of `ended` weigh besides their text.
AROUND = 2 * 41 + len(b"end")


def finished_streams(retention_s: float = 100.0, max_bytes: int = 10_000) -> FinishedStreams:
    return FinishedStreams(retention_s=retention_s, max_bytes=max_bytes, clock=clock())


def ended(stream_id: str, text_bytes: int = 100, owner: str | None = None) -> Stream:
    """A resumable stream that has ended, with so much text."""
    writer = WriterHarness(clock()).queued(2**20)
    writer.stats.id = stream_id
    writer.stats.caller = a_caller(owner)
    writer.start(None)
    writer.put(Delta("x" * text_bytes, 1, "stop"))
    return Stream(writer, PlainProtocol(), is_streaming=True, grace_s=1.0)


@in_virtual_time
async def test_a_stream_stays_for_its_retention_and_is_remembered_as_gone() -> None:
    retention = finished_streams(retention_s=100)
    stream = ended("a", owner="ann")
    retention.put(stream, 0)
    await asyncio.sleep(99.9)

    assert (retention.get("a"), len(retention), retention.was_dropped("a", "ann")) == (stream, 1, False)

    await asyncio.sleep(0.2)

    assert (retention.get("a"), len(retention), retention.size_bytes) == (None, 0, 0)
    assert retention.was_dropped("a", "ann")


@in_virtual_time
async def test_each_expires_when_its_own_time_is_up() -> None:
    retention = finished_streams(retention_s=100)
    for name in "abc":
        retention.put(ended(name), 0)
        await asyncio.sleep(30)
    seen = []
    for _ in range(4):
        seen.append("".join(name for name in "abc" if retention.get(name)))
        await asyncio.sleep(30)

    assert seen == ["abc", "bc", "c", ""], "looked at 90, 120, 150 and 180 s"


@in_virtual_time
async def test_with_no_retention_a_stream_goes_with_the_turn() -> None:
    retention = finished_streams(retention_s=0)
    retention.put(ended("a"), 0)
    await asyncio.sleep(0.001)

    assert retention.get("a") is None


@pytest.mark.parametrize("began_s", [0.1 * number for number in range(20)])
@in_virtual_time
async def test_rounding_does_not_make_the_timer_spin(began_s: float) -> None:
    """In virtual time a timer that comes due again and again at one moment never ends."""
    await asyncio.sleep(began_s)
    retention = finished_streams(retention_s=0.3)
    retention.put(ended("a"), 0)
    await asyncio.sleep(1)

    assert len(retention) == 0


@in_virtual_time
async def test_the_size_of_all_streams_is_counted() -> None:
    retention = finished_streams()
    retention.put(ended("a", 100), 0)
    retention.put(ended("b", 200), 0)

    assert retention.size_bytes == 300 + 2 * AROUND


@in_virtual_time
async def test_beyond_the_limit_the_oldest_goes_first() -> None:
    retention = finished_streams(max_bytes=3 * (100 + AROUND))
    for name in "abc":
        retention.put(ended(name, 100), 0)

    assert len(retention) == 3

    retention.put(ended("d", 100), 0)

    assert [retention.get(name) is not None for name in "abcd"] == [False, True, True, True]
    assert retention.was_dropped("a", None)

    retention.put(ended("e", 200), 0)

    assert [retention.get(name) is not None for name in "abcde"] == [False, False, False, True, True], (
        "it needs two places"
    )


@in_virtual_time
async def test_the_size_of_live_streams_counts_too() -> None:
    weight = 100 + AROUND
    retention = finished_streams(max_bytes=3 * weight)
    retention.put(ended("a", 100), 0)
    retention.put(ended("b", 100), weight)

    assert len(retention) == 2

    retention.put(ended("c", 100), weight)

    assert [retention.get(name) is not None for name in "abc"] == [False, True, True]


@in_virtual_time
async def test_finished_streams_are_dropped_for_live_ones_as_far_as_that_suffices() -> None:
    retention = finished_streams(max_bytes=1000)
    retention.put(ended("a", 400), 0)

    assert retention.shrink(400)
    assert len(retention) == 1
    assert retention.shrink(1000), "what just fits fits"
    assert len(retention) == 0
    assert not retention.shrink(1001)


@in_virtual_time
async def test_a_stream_too_large_for_retention_is_gone_at_once() -> None:
    retention = finished_streams(max_bytes=100)
    retention.put(ended("a", 400), 0)

    assert (retention.get("a"), retention.size_bytes, retention.was_dropped("a", None)) == (None, 0, True)


@in_virtual_time
async def test_only_the_owner_gets_the_error_of_a_dropped_stream() -> None:
    retention = finished_streams(max_bytes=100)
    retention.put(ended("a", owner="ann"), 0)

    assert [retention.was_dropped("a", owner) for owner in ("ann", "bob", None)] == [True, False, False]
    assert not retention.was_dropped("b", "ann")


@in_virtual_time
async def test_the_memory_of_what_is_gone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "_REMEMBERED", 3)
    retention = finished_streams(max_bytes=100)
    for name in "abcde":
        retention.put(ended(name), 0)

    assert [retention.was_dropped(name, None) for name in "abcde"] == [False, False, True, True, True]


@in_virtual_time
async def test_the_size_of_a_stream_does_not_change_in_retention() -> None:
    """A request for its status and a reader seal what is pending; after the end there is nothing pending."""
    retention = finished_streams(retention_s=100)
    stream = ended("a", 100)
    retention.put(stream, 0)
    with stream.read() as reader:
        await reader.next_batch()
    stream.writer.put(Delta("late", 1))
    stream.writer.flush()

    assert retention.size_bytes == 100 + AROUND

    await asyncio.sleep(101)

    assert retention.size_bytes == 0


@in_virtual_time
async def test_a_resumable_stream_is_refused_if_its_events_may_not_fit() -> None:
    """Plain streams keep nothing, so they are let in all the same."""
    harness = StreamHarness(limits=replace(STREAM_LIMITS, max_bytes=10_000, max_total_bytes=15_000))
    stream = harness.open(grace_s=10)
    await settle()
    harness.engine.runs[0].put_text("x" * 6000)
    stream.writer.flush()
    with pytest.raises(Overloaded, match="no room for another resumable stream") as caught:
        harness.open(grace_s=10)

    assert caught.value.retry_after_s == 5
    assert harness.instrumentation.rejections == ["resumable_full"]
    assert cause(harness.open()) is None

    harness.registry.end_all()


@in_virtual_time
async def test_finished_streams_are_dropped_for_live_ones_oldest_first() -> None:
    harness = StreamHarness(limits=replace(STREAM_LIMITS, max_bytes=5_000, max_total_bytes=10_000))
    streams = []
    for _ in range(3):
        stream = harness.open(grace_s=10)
        await settle()
        harness.run_of(stream).end("x" * 2000)
        streams.append(stream)

    harness.open(grace_s=10)
    with pytest.raises(Expired):
        harness.registry.find(streams[0].id, a_caller())
    assert harness.registry.find(streams[2].id, a_caller()) is streams[2]
    assert harness.registry.kept_bytes <= 5_000

    harness.registry.end_all()


@in_virtual_time
async def test_one_stream_may_retain_the_whole_total() -> None:
    harness = StreamHarness(limits=replace(STREAM_LIMITS, max_bytes=10_000, max_total_bytes=10_000))

    assert harness.open(grace_s=10).is_resumable

    harness.registry.end_all()


@in_virtual_time
async def test_streams_that_grow_after_admission_share_the_total() -> None:
    harness = StreamHarness(max_concurrent=10, limits=replace(STREAM_LIMITS, max_bytes=10_000, max_total_bytes=20_000))
    streams = [harness.open(grace_s=10) for _ in range(8)]
    with pytest.raises(Overloaded):
        harness.open(grace_s=10)
    await settle()
    for _ in range(20):
        for stream in streams:
            harness.run_of(stream).put_text("x" * 100)
            stream.writer.flush()

            assert harness.registry.kept_bytes <= 20_000

    assert all(stream.writer.log.size_bytes > 1_500 for stream in streams), "an equal share each"

    for stream in streams[1:]:
        stream.writer.cancel(Cancelled("gone"))
    for _ in range(50):
        harness.run_of(streams[0]).put_text("x" * 100)
        streams[0].writer.flush()

    assert streams[0].writer.log.size_bytes > 7_000, "who is left has all that one may have"

    harness.registry.end_all()
