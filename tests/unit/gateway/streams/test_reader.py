from __future__ import annotations

import asyncio

import pytest

from gateway.domain import Cause, Delta
from gateway.errors import Expired
from gateway.streamlog.base import Batch, Ended
from gateway.streams.reader import StreamReader
from gateway.streams.writer import StreamWriter
from tests.support.harness import WriterHarness
from tests.support.time import clock, in_virtual_time, settle

DONE = Ended(Cause.COMPLETED)


@in_virtual_time
async def test_events_that_are_there_are_taken_without_a_wait_and_the_cursor_moves_on() -> None:
    writer = await WriterHarness().running()
    reader = writer.add_reader(0)
    writer.put(Delta("a", 1))
    writer.flush()
    writer.put(Delta("b", 1))

    assert await reader.next_batch() == Batch(1, [b"a", b"b"], None)
    assert reader.cursor == 2

    writer.finish()

    assert await reader.next_batch() == Batch(3, [b"end"], DONE)
    assert await reader.next_batch() == Batch(4, [], DONE), "the end stays readable"


@in_virtual_time
async def test_a_waiting_reader_wakes_once_and_takes_all_that_came_in_the_same_turn() -> None:
    writer = await WriterHarness().running()
    reader = writer.add_reader(0)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put(Delta("a", 1))
    writer.put(Delta("b", 1))
    writer.finish()

    assert await reading == Batch(1, [b"ab", b"end"], DONE)


@in_virtual_time
async def test_a_nudge_makes_a_wait_return_with_nothing() -> None:
    writer = await WriterHarness().running()
    reader = writer.add_reader(0)
    for _ in range(2):
        reading = asyncio.get_running_loop().create_task(reader.next_batch())
        await settle()
        reader.request_keepalive()

        assert await reading is None

    assert reader.cursor == 0


@in_virtual_time
async def test_a_nudge_that_news_have_overtaken_is_forgotten() -> None:
    writer = await WriterHarness().running()
    reader = writer.add_reader(0)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    reader.request_keepalive()
    writer.put(Delta("a", 1))

    assert await reading == Batch(1, [b"a"], None)

    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()

    assert not reading.done()

    writer.finish()
    await reading


@in_virtual_time
async def test_a_keepalive_requested_before_a_read_does_not_wake_it() -> None:
    writer = await WriterHarness().running()
    reader = writer.add_reader(0)
    reader.request_keepalive()
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()

    assert not reading.done()

    writer.finish()
    await reading


@in_virtual_time
async def test_a_token_that_adds_no_text_is_no_news() -> None:
    """Otherwise a reader would be sent a keep-alive for every piece of a character."""
    writer = await WriterHarness().running()
    reader = writer.add_reader(0)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    for _ in range(3):
        writer.put(Delta("", 1))
        await settle()

    assert not reading.done()

    writer.put(Delta("a", 1))

    assert await reading == Batch(1, [b"a"], None)

    writer.finish()


@in_virtual_time
async def test_two_followers_of_one_stream_get_the_same_events_each_from_its_own_cursor() -> None:
    writer = await WriterHarness().running(2**20)
    slow, fast = writer.add_reader(0), writer.add_reader(0)
    writer.put(Delta("a", 1))

    assert await fast.next_batch() == Batch(1, [b"a"], None)

    writer.put(Delta("b", 1))

    assert await fast.next_batch() == Batch(2, [b"b"], None)
    assert await slow.next_batch() == Batch(1, [b"a", b"b"], None)

    reading = [asyncio.get_running_loop().create_task(one.next_batch()) for one in (slow, fast)]
    await settle()
    writer.finish()

    assert [await one for one in reading] == [Batch(3, [b"end"], DONE)] * 2


@in_virtual_time
async def test_a_reader_that_comes_too_late_gets_the_error_every_time_and_keeps_its_place() -> None:
    writer = await WriterHarness().running(keep_bytes=300)
    reader = writer.add_reader(0)
    for _ in range(20):
        writer.put(Delta("x" * 50, 1))
        writer.flush()
    for _ in range(2):
        with pytest.raises(Expired):
            await reader.next_batch()

    assert reader.cursor == 0

    fresh = writer.add_reader(19)

    assert await fresh.next_batch() == Batch(20, [b"x" * 50], None)

    writer.finish()


@in_virtual_time
async def test_a_reader_that_falls_behind_while_it_waits_gets_the_error_when_it_wakes() -> None:
    writer = await WriterHarness().running(keep_bytes=300)
    reader = writer.add_reader(0)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    for _ in range(20):
        writer.put(Delta("x" * 50, 1))
        writer.flush()
    with pytest.raises(Expired):
        await reading
    writer.finish()


@in_virtual_time
async def test_a_reader_that_gives_up_its_wait_loses_nothing() -> None:
    writer = await WriterHarness().running()
    reader = writer.add_reader(0)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put(Delta("a", 1))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert await reader.next_batch() == Batch(1, [b"a"], None)

    writer.remove_reader(reader)
    writer.finish()


@in_virtual_time
async def test_a_closed_follower_is_left_alone() -> None:
    writer = await WriterHarness().running()
    reader = writer.add_reader(0)
    writer.remove_reader(reader)

    assert writer._readers == []

    writer.finish()


class FakeSink:
    """A direct sink that can be full, and that can break."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.is_full = False
        self.is_broken = False

    def is_writable(self) -> bool:
        return not self.is_full

    def write(self, data: bytes) -> None:
        if self.is_broken:
            raise OSError("broken")
        first, _, documents = data.partition(b":")
        self.batches.append(Batch(int(first), documents.split(b","), None))

    def flush(self) -> None:
        raise AssertionError

    def abort(self) -> None:
        raise AssertionError


def direct(writer: StreamWriter) -> tuple[StreamReader, FakeSink]:
    """A reader whose events go to a sink."""
    reader, sink = writer.add_reader(0), FakeSink()
    reader.deliver_to(sink, lambda documents, first: b"%d:%b" % (first, b",".join(documents)))
    return reader, sink


@in_virtual_time
async def test_while_the_sink_is_writable_events_go_there_and_the_end_does_not() -> None:
    writer = await WriterHarness().running()
    reader, sink = direct(writer)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put(Delta("a", 1))

    assert sink.batches == [], "more may come in this turn"

    await settle()
    writer.put_text("b", 1, clock().now())
    writer.put_text("", 1, clock().now())
    writer.put_text("c", 1, clock().now())

    assert sink.batches == [Batch(1, [b"a"], None), Batch(2, [b"b"], None), Batch(3, [b"c"], None)], "within the call"

    writer.put(Delta("d", 1))
    # What comes behind something that waits waits, too.
    writer.put_text("e", 1, clock().now())

    assert len(sink.batches) == 3

    await settle()

    assert sink.batches[3:] == [Batch(4, [b"de"], None)]
    assert reader.cursor == 4

    writer.finish()

    assert await reading == Batch(5, [b"end"], DONE)


@in_virtual_time
async def test_each_of_two_readers_gets_everything() -> None:
    writer = await WriterHarness().running(keep_bytes=1000)
    reader, sink = direct(writer)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put(Delta("a", 1))
    await settle()
    late = writer.add_reader(0)
    writer.put_text("b", 1, clock().now())
    await settle()
    writer.remove_reader(late)
    writer.put_text("c", 1, clock().now())

    assert sink.batches == [Batch(1, [b"a"], None), Batch(2, [b"b"], None), Batch(3, [b"c"], None)]
    assert await writer.add_reader(0).next_batch() == Batch(1, [b"a", b"b", b"c"], None), "what has passed is kept"

    writer.finish()
    await reading


@in_virtual_time
async def test_no_event_overtakes_one_that_the_reader_has_not_taken() -> None:
    """It has come back to an older event, and its own task has not run yet."""
    writer = await WriterHarness().running(keep_bytes=1000)
    writer.put(Delta("a", 1))
    writer.flush()
    reader, sink = direct(writer)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    writer.put_text("b", 1, clock().now())

    assert sink.batches == []
    assert await reading == Batch(1, [b"a", b"b"], None)

    writer.finish()


@in_virtual_time
async def test_a_full_sink_wakes_the_waiting_task() -> None:
    writer = await WriterHarness().running()
    reader, sink = direct(writer)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put(Delta("a", 1))
    # Between the news and the turn in which they would have gone.
    sink.is_full = True

    assert await reading == Batch(1, [b"a"], None)

    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put_text("b", 1, clock().now())

    assert await reading == Batch(2, [b"b"], None)
    assert sink.batches == []

    writer.finish()


@in_virtual_time
async def test_a_broken_sink_fails_the_reader_and_not_the_writer() -> None:
    writer = await WriterHarness().running()
    reader, sink = direct(writer)
    sink.is_broken = True
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put(Delta("a", 1))

    with pytest.raises(OSError, match="broken"):
        await reading

    assert writer.ended is None

    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put_text("b", 1, clock().now())

    with pytest.raises(OSError, match="broken"):
        await reading

    assert writer.ended is None

    writer.remove_reader(reader)
    writer.finish()


@in_virtual_time
async def test_nothing_goes_to_the_sink_of_a_cancelled_reader() -> None:
    writer = await WriterHarness().running()
    reader, sink = direct(writer)
    reading = asyncio.get_running_loop().create_task(reader.next_batch())
    await settle()
    writer.put(Delta("a", 1))
    reading.cancel()
    await settle()
    writer.put_text("b", 1, clock().now())
    await settle()

    assert sink.batches == []
    assert await reader.next_batch() == Batch(1, [b"ab"], None)

    writer.remove_reader(reader)
    writer.finish()
