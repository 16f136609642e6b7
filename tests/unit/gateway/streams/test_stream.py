from __future__ import annotations

import asyncio

import pytest

from gateway.domain import Cause, Delta
from gateway.errors import ClientError, EngineFailed
from gateway.streamlog.base import Batch, Ended
from gateway.streams.cancel_scope import ClientDisconnected
from gateway.streams.stream import NoSuchEvent, Stream, deadline_error
from gateway.streams.writer import StreamWriter
from tests.support.harness import PlainProtocol, WriterHarness
from tests.support.time import clock, in_virtual_time, settle

PROTOCOL = PlainProtocol()


async def plain(harness: WriterHarness | None = None) -> Stream:
    return Stream(await (harness or WriterHarness(clock())).running(), PROTOCOL, is_streaming=True, grace_s=None)


async def resumable(grace_s: float = 10.0, harness: WriterHarness | None = None) -> Stream:
    return Stream(
        await (harness or WriterHarness(clock())).running(2**20), PROTOCOL, is_streaming=True, grace_s=grace_s
    )


def cause(writer: StreamWriter) -> Cause | None:
    return None if writer.ended is None else writer.ended.cause


@in_virtual_time
async def test_a_streams_status_is_its_state_and_then_its_cause() -> None:
    harness = WriterHarness(clock())
    stream = Stream(harness.queued(), PROTOCOL, is_streaming=True, grace_s=None)
    statuses = [stream.status]
    stream.writer.start(None)
    stream.writer.stats.submitted = True
    statuses.append(stream.status)
    stream.writer.on_engine_lost()
    statuses.append(stream.status)
    stream.writer.fail(EngineFailed("Down."))
    statuses.append(stream.status)

    assert statuses == ["queued", "running", "recovering", "engine_failed"]
    assert stream.id == "chatcmpl-1"
    assert not stream.is_resumable


@in_virtual_time
async def test_a_plain_stream_ends_with_its_reader_as_a_disconnect() -> None:
    harness = WriterHarness(clock())
    stream = await plain(harness)
    with stream.read():
        assert cause(stream.writer) is None

    assert cause(stream.writer) is Cause.DISCONNECTED
    assert harness.handle.aborts == 1


@in_virtual_time
async def test_a_plain_stream_ends_with_the_cause_for_which_its_reader_was_dropped() -> None:
    stream = await plain()
    with pytest.raises(ClientDisconnected), stream.read():
        raise ClientDisconnected(Cause.CLIENT_STALLED)

    assert cause(stream.writer) is Cause.CLIENT_STALLED


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("a defect")])
@in_virtual_time
async def test_whatever_ends_the_reading_ends_a_plain_stream(error: BaseException) -> None:
    stream = await plain()
    with pytest.raises(type(error)), stream.read():
        raise error

    assert cause(stream.writer) is Cause.DISCONNECTED


@in_virtual_time
async def test_a_stream_that_ended_while_it_was_read_keeps_its_ending() -> None:
    harness = WriterHarness(clock())
    for stream in (await plain(harness), await resumable(harness=harness)):
        with stream.read() as reader:
            stream.writer.put(Delta("a", 1, "stop"))

            assert await reader.next_batch() == Batch(1, [b"a", b"end"], Ended(Cause.COMPLETED))

        assert cause(stream.writer) is Cause.COMPLETED

    await asyncio.sleep(100)

    assert harness.handle.aborts == 0


@in_virtual_time
async def test_a_resumable_stream_goes_on_without_a_reader_for_its_grace_and_then_is_cancelled() -> None:
    harness = WriterHarness(clock())
    stream = await resumable(10.0, harness)
    with stream.read():
        pass
    await asyncio.sleep(9.99)

    assert cause(stream.writer) is None

    await asyncio.sleep(0.02)

    assert cause(stream.writer) is Cause.CANCELLED
    assert harness.handle.aborts == 1


@in_virtual_time
async def test_a_grace_of_no_time_ends_with_the_turn() -> None:
    stream = await resumable(0.0)
    with stream.read():
        pass

    assert cause(stream.writer) is None

    await settle()

    assert cause(stream.writer) is Cause.CANCELLED


@in_virtual_time
async def test_a_reader_that_comes_back_in_time_stops_the_grace_and_starts_a_new_one() -> None:
    stream = await resumable(10.0)
    for _ in range(3):
        with stream.read():
            await asyncio.sleep(100)
        await asyncio.sleep(9)

        assert cause(stream.writer) is None

    await asyncio.sleep(2)

    assert cause(stream.writer) is Cause.CANCELLED


@in_virtual_time
async def test_grace_begins_when_the_last_of_several_readers_leaves() -> None:
    stream = await resumable(10.0)
    with stream.read():
        with stream.read(), stream.read():
            pass
        await asyncio.sleep(100)

        assert cause(stream.writer) is None
    await asyncio.sleep(11)

    assert cause(stream.writer) is Cause.CANCELLED


@in_virtual_time
async def test_several_readers_see_the_same_events() -> None:
    stream = await resumable()
    writer = stream.writer
    with stream.read() as ann:
        writer.put(Delta("a", 1))
        first = await ann.next_batch()
        with stream.read() as bob, stream.read(1) as eve:
            writer.put(Delta("b", 1, "stop"))
            batches = [await one.next_batch() for one in (ann, bob, eve)]

    assert first == Batch(1, [b"a"], None)
    assert [batch and (batch.first, batch.documents) for batch in batches] == [
        (2, [b"b", b"end"]),
        (1, [b"a", b"b", b"end"]),
        (2, [b"b", b"end"]),
    ]


@in_virtual_time
async def test_a_cursor_behind_the_newest_event_is_refused_and_changes_nothing() -> None:
    stream = await resumable(10.0)
    stream.writer.put(Delta("a", 1))
    for cursor in (1, 2):
        with pytest.raises(ClientError, match=f"no event {cursor} yet; the newest has number 0") as caught:
            with stream.read(cursor):
                raise AssertionError

        assert (caught.value.status, type(caught.value)) == (400, NoSuchEvent)

    with stream.read() as reader:
        await reader.next_batch()
        with pytest.raises(ClientError, match="the newest has number 1"), stream.read(2):
            raise AssertionError
        with stream.read(1):
            pass
    await asyncio.sleep(5)
    with pytest.raises(ClientError), stream.read(9):
        raise AssertionError
    await asyncio.sleep(6)

    assert cause(stream.writer) is Cause.CANCELLED, "a client that read nothing is no reader"


@in_virtual_time
async def test_everything_has_been_read_when_the_cursor_is_at_the_end_of_an_ended_stream() -> None:
    stream = await resumable()
    writer = stream.writer
    writer.put(Delta("a", 1))
    writer.flush()

    assert not stream.is_fully_read(1), "there is more to come"

    writer.finish()

    assert [stream.is_fully_read(cursor) for cursor in (0, 1, 2, 3)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("start", "tokens", "words"),
    [
        (False, 0, "The request passed its deadline of 2.5 s while it waited; nothing was generated."),
        (True, 7, "The request passed its deadline of 2.5 s after 7 completion tokens."),
    ],
)
@in_virtual_time
async def test_a_deadline_ends_a_stream_and_names_the_tokens_spent(start: bool, tokens: int, words: str) -> None:
    harness = WriterHarness(clock())
    writer = harness.queued()
    stream = Stream(writer, PROTOCOL, is_streaming=True, grace_s=None)
    stream.expire_in(2.0, 2.5)
    if start:
        writer.start(None)
        writer.put(Delta("a", tokens))
    await asyncio.sleep(1.99)

    assert writer.ended is None

    await asyncio.sleep(0.02)

    assert writer.ended is not None
    assert (writer.ended.cause, str(writer.ended.error)) == (Cause.DEADLINE_EXCEEDED, words)


def test_the_error_of_a_deadline_must_not_be_retried() -> None:
    assert deadline_error(30, 0, is_queued=True).status == 408
    assert not deadline_error(30, 0, is_queued=True).retryable


@in_virtual_time
async def test_a_stream_that_is_settled_waits_for_nothing_any_more() -> None:
    harness = WriterHarness(clock())
    stream = await resumable(10.0, harness)
    stream.expire_in(20.0, 20.0)
    with stream.read():
        pass
    stream.writer.finish()
    stream.on_ended()
    await asyncio.sleep(100)

    assert cause(stream.writer) is Cause.COMPLETED


async def walking(stream: Stream) -> asyncio.Task[None]:
    async def walk() -> None:
        await asyncio.sleep(50)

    stream.start_task = asyncio.get_running_loop().create_task(walk())
    await settle()
    return stream.start_task


@in_virtual_time
async def test_a_stream_that_failed_stops_its_start_task() -> None:
    stream = await plain()
    walk = await walking(stream)
    stream.writer.fail(EngineFailed("Down."))
    stream.on_ended()
    await settle()

    assert walk.cancelled()


@in_virtual_time
async def test_settling_a_stream_that_is_complete_lets_its_handle_come() -> None:
    """The answer can be complete before the engine's client has returned from taking the request."""
    stream = await plain()
    walk = await walking(stream)
    stream.writer.finish()
    stream.on_ended()
    await walk

    assert not walk.cancelled()


@in_virtual_time
async def test_settling_from_the_way_itself_does_not_cancel_it() -> None:
    stream = await plain()

    async def walk() -> None:
        stream.writer.fail(EngineFailed("Down."))
        stream.on_ended()
        await asyncio.sleep(1)

    stream.start_task = asyncio.get_running_loop().create_task(walk())
    await stream.start_task
