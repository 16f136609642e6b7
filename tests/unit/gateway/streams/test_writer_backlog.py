"""Output that no reader takes: its cost, its limits, and the waiting of its formatter."""

from __future__ import annotations

import asyncio

from gateway.domain import Cause, Chunk, Delta
from gateway.errors import Cancelled
from tests.support.harness import WriterHarness, documents
from tests.support.time import clock, in_virtual_time, settle


@in_virtual_time
async def test_an_unread_plain_stream_costs_its_text_only() -> None:
    """A delta is some two hundred bytes around a few letters; a reader that stops must not pay them for every token."""
    writer = await WriterHarness().running()
    for number in range(10_000):
        writer.put(Delta(f"{number:05d}", 1))

        assert len(writer._pending) < 64

    output = documents(writer)

    assert b"".join(output) == b"".join(b"%05d" % number for number in range(10_000))
    assert len(output) == 5, "as few as lines of less than 64 KiB allow"
    assert writer.stats.completion_tokens == 10_000

    writer.finish()


@in_virtual_time
async def test_an_unread_stream_that_keeps_moves_into_its_log_and_under_its_limit() -> None:
    writer = await WriterHarness().running(keep_bytes=4096)
    for number in range(64 * 100):
        writer.put(Delta(f"{number:05d}", 1))

        assert len(writer._pending) < 64

    assert writer.log.last == 100, "64 deltas an event"
    assert writer.log.size_bytes <= 4096

    writer.finish()


@in_virtual_time
async def test_a_formatter_waits_while_its_documents_pile_up_unread() -> None:
    writer = await WriterHarness().running()
    written = 0

    async def format_() -> None:
        nonlocal written
        for _ in range(50):
            writer.put(Chunk(b"x" * 1024))
            written += 1
            if writer.is_over_high_water:
                await writer.wait_writable()
        writer.finish()

    task = asyncio.get_running_loop().create_task(format_())
    await settle()

    assert (writer.is_over_high_water, written) == (True, 17), "16 KiB, and the one that was too many"

    await asyncio.sleep(100)

    assert written == 17

    writer.flush()
    await settle()

    assert written == 34

    writer.flush()
    await settle()
    writer.flush()
    await task

    assert writer.log.last == 51


@in_virtual_time
async def test_a_formatter_of_a_stream_that_keeps_never_waits() -> None:
    """It goes on without a reader."""
    writer = await WriterHarness().running(keep_bytes=2**20)
    for _ in range(100):
        writer.put(Chunk(b"x" * 1024))

        assert not writer.is_over_high_water

    writer.finish()

    assert writer.log.last == 101


@in_virtual_time
async def test_a_formatter_that_waits_wakes_at_the_end() -> None:
    writer = await WriterHarness(clock()).running()
    writer.put(Chunk(b"x" * 18_000))
    task = asyncio.get_running_loop().create_task(writer.wait_writable())
    await settle()
    writer.cancel(Cancelled("By its id."))
    await task
    await writer.wait_writable()

    assert writer.log.last == 2


@in_virtual_time
async def test_a_formatter_that_is_cancelled_while_it_waits_is_no_hindrance() -> None:
    writer = await WriterHarness(clock()).running()
    writer.put(Chunk(b"x" * 18_000))
    task = asyncio.get_running_loop().create_task(writer.wait_writable())
    await settle()
    task.cancel()
    await settle()
    writer.flush()
    writer.finish()

    assert task.cancelled()
    assert writer.log.last == 2


def _log_probabilities(number: int) -> Chunk:
    """Some 700 bytes that do not compress away."""
    return Chunk(f'{{"{number}":{[hash((number, i)) for i in range(32)]}}}'.encode())


@in_virtual_time
async def test_documents_for_a_late_reader_are_packed_and_nothing_of_them_is_lost() -> None:
    harness = WriterHarness(clock())
    writer = await harness.running()
    output = [_log_probabilities(number) for number in range(100)]
    for piece in output:
        writer.put(piece)

    assert writer.ended is None
    assert 0 < writer.log.size_bytes < sum(len(piece.payload) for piece in output) / 2
    assert documents(writer) == [piece.payload for piece in output]
    assert (writer.log.size_bytes, writer.log.last) == (0, 100)

    writer.finish()


@in_virtual_time
async def test_a_client_that_lets_documents_pile_up_for_too_long_is_stalled_and_gets_an_error() -> None:
    harness = WriterHarness(clock())
    writer = await harness.running()
    number = 0
    while writer.ended is None:
        writer.put(_log_probabilities(number))
        number += 1
        harness.clock.advance(0.02)
        assert number < 1000

    assert writer.ended.cause is Cause.CLIENT_STALLED
    assert writer.log.size_bytes < 64 * 2**10
    assert (harness.handle.aborts, harness.gate.slots_taken) == (1, 0)
    assert documents(writer) == [*[_log_probabilities(i).payload for i in range(number)], b'"client_stalled"']


@in_virtual_time
async def test_large_documents_that_come_together_are_no_sign_of_a_stall() -> None:
    """The log probabilities of a long prompt, for each choice of n, before the reader has had a turn."""
    harness = WriterHarness(clock())
    writer = await harness.running()
    large = Chunk(b"".join(_log_probabilities(i).payload for i in range(1000)))
    for _ in range(8):
        writer.put(large)

    assert writer.ended is None
    assert documents(writer) == [large.payload] * 8

    writer.finish()


@in_virtual_time
async def test_a_whole_answer_may_be_of_any_size() -> None:
    harness = WriterHarness(clock())
    writer = await harness.running(streaming=False)
    writer.put(Chunk(b"x" * 2**20))

    assert writer.log.size_bytes == 0

    writer.finish()
