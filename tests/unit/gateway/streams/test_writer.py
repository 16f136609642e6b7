from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import Cause, Chunk, Delta
from gateway.errors import Cancelled, EngineFailed
from gateway.streamlog.base import Ended
from gateway.streams.lifecycle import State
from gateway.streams.writer import StreamWriter
from tests.support.engine import chunk_template
from tests.support.harness import Handle, WriterHarness, documents
from tests.support.time import clock, in_virtual_time, run, settle

KINDS = pytest.mark.parametrize("keep_bytes", [None, 2**20])


@KINDS
@in_virtual_time
async def test_pieces_become_events_in_order_and_a_finish_reason_ends_the_stream(keep_bytes: int | None) -> None:
    harness = WriterHarness()
    writer = await harness.running(keep_bytes)
    for piece in (Delta("a", 1), Delta("b", 2), Delta("c", 1, "stop")):
        writer.put(piece)
        writer.flush()

    assert documents(writer) == [b"a", b"b", b"c", b"end"]
    assert writer.ended == Ended(Cause.COMPLETED)
    assert (harness.gate.slots_taken, harness.ends, harness.handle.aborts) == (0, 1, 0)
    assert writer.stats.completion_tokens == 4


@in_virtual_time
async def test_parts_that_pile_up_leave_as_one_and_are_counted() -> None:
    harness = WriterHarness()
    writer = await harness.running()
    for text in "abc":
        writer.put(Delta(text, 1))

    assert documents(writer) == [b"abc"]
    assert harness.instrumentation.spared == [2]

    writer.put(Delta("d", 1))
    writer.flush()
    writer.finish()

    assert harness.instrumentation.spared == [2], "a single one spares no other"


@in_virtual_time
async def test_ready_made_documents_end_with_finish() -> None:
    """The engine that formats counts its own tokens, so a chunk adds none."""
    harness = WriterHarness()
    writer = await harness.running()
    writer.put(Chunk(b"{}"))
    writer.finish()

    assert documents(writer) == [b"{}", b"end"]
    assert writer.ended == Ended(Cause.COMPLETED)
    assert writer.stats.completion_tokens == 0
    assert harness.instrumentation.spared == []


@in_virtual_time
async def test_a_whole_answer_has_no_documents_that_end_it() -> None:
    harness = WriterHarness()
    writer = await harness.running(streaming=False)
    writer.put(Chunk(b"{}"))
    writer.finish()

    assert documents(writer) == [b"{}"]


@in_virtual_time
async def test_the_template_of_the_start_chooses_the_encoder() -> None:
    harness = WriterHarness()
    writer = harness.queued()
    writer.start(chunk_template())
    writer.put(Delta("a", 1))

    assert documents(writer) == [b"<a>"]

    writer.finish()


@in_virtual_time
async def test_nothing_is_taken_before_the_start() -> None:
    writer = WriterHarness().queued()
    writer.put(Delta("early", 1))
    writer.finish()

    assert (writer.state, writer.has_output, writer.ended) == (State.QUEUED, False, None)
    assert documents(writer) == []
    assert writer.stats.completion_tokens == 0


@in_virtual_time
async def test_failure_ends_the_stream_with_the_cause_of_its_error_and_aborts_nothing() -> None:
    """The engine that failed has nothing left to abort."""
    harness = WriterHarness()
    writer = await harness.running()
    error = EngineFailed("The engine gave up.")
    writer.fail(error)

    assert writer.ended == Ended(Cause.ENGINE_FAILED, error)
    assert documents(writer) == [b'"engine_failed"']
    assert (harness.gate.slots_taken, harness.handle.aborts) == (0, 0)


@in_virtual_time
async def test_cancelling_frees_the_slot_and_the_sequence_at_once() -> None:
    harness = WriterHarness()
    writer = await harness.running()
    writer.cancel(Cancelled("By its id."))

    assert (harness.gate.slots_taken, harness.handle.aborts, harness.ends) == (0, 1, 1)
    assert writer.ended is not None
    assert writer.ended.cause is Cause.CANCELLED


@in_virtual_time
async def test_the_cause_of_a_cancellation_may_be_another_than_its_errors() -> None:
    """A client that left has cancelled nothing; that is no error, and the log has an event that no client reads."""
    writer = await WriterHarness().running()
    writer.cancel(Cancelled("The client left."), Cause.DISCONNECTED)

    assert writer.ended is not None
    assert writer.ended.cause is Cause.DISCONNECTED


@in_virtual_time
async def test_a_cancellation_before_the_engine_has_answered_reaches_it_when_it_does() -> None:
    """Between submit and its handle there is an await, and a request may well be cancelled there."""
    harness = WriterHarness()
    writer = harness.queued()
    writer.start(None)
    writer.cancel(Cancelled("By its id."))
    writer.attach(harness.handle)

    assert harness.handle.aborts == 1


@in_virtual_time
async def test_a_stream_that_was_complete_before_its_handle_came_is_not_aborted() -> None:
    harness = WriterHarness()
    writer = harness.queued()
    writer.start(None)
    writer.put(Delta("all", 1, "stop"))
    writer.attach(harness.handle)

    assert harness.handle.aborts == 0


@in_virtual_time
async def test_a_permit_that_comes_after_the_end_goes_back_at_once() -> None:
    harness = WriterHarness()
    writer = harness.queued()
    writer.cancel(Cancelled("By its id."))
    writer.admit(await harness.gate.enter())

    assert harness.gate.slots_taken == 0


@in_virtual_time
async def test_tokens_and_their_gaps_are_measured() -> None:
    harness = WriterHarness()
    writer = await harness.running()
    harness.clock.advance(2.0)
    writer.put(Delta("a", 1))
    harness.clock.advance(0.5)
    writer.put(Delta("", 0))
    writer.put(Delta("b", 3))
    writer.finish()

    assert writer.stats.first_token_s == 1002.0
    assert harness.instrumentation.gaps == [pytest.approx(0.5)]
    assert writer.stats.completion_tokens == 4


@in_virtual_time
async def test_an_ending_that_outlives_its_exchange_is_counted_before_it_is_sent() -> None:
    harness = WriterHarness()
    kept, plain = harness.queued(2**20, is_resumable=True), harness.queued()
    for writer in (kept, plain):
        writer.fail(EngineFailed("Down."))

    assert kept.stats.cause is Cause.REFUSED_UNREADY
    assert plain.stats.cause is None, "that exchange will report by itself how it ended"


@in_virtual_time
async def test_a_stream_goes_on_with_the_next_engine() -> None:
    writer = await WriterHarness().running()
    writer.put(Delta("a", 1))
    writer.on_engine_lost()
    writer.put(Delta("b", 1))

    assert writer.state is State.RECOVERING

    writer.on_engine_recovered()
    writer.put(Delta("c", 1, "stop"))

    assert documents(writer) == [b"abc", b"end"]


@in_virtual_time
async def test_a_stream_at_the_gate_has_no_engine_to_lose() -> None:
    writer = WriterHarness().queued()
    writer.on_engine_lost()

    assert writer.state is State.QUEUED

    writer.on_engine_recovered()

    assert writer.state is State.QUEUED

    writer.cancel(Cancelled("By its id."))


@in_virtual_time
async def test_it_has_output_when_the_engine_has_generated() -> None:
    writer = await WriterHarness().running()

    assert not writer.has_output

    writer.put(Delta("", 0))

    assert writer.has_output

    writer.finish()


@in_virtual_time
async def test_every_reader_is_woken_by_every_part_and_by_the_end_until_it_is_removed() -> None:
    writer = await WriterHarness().running()
    woken: list[str] = []
    ann, bob = writer.add_reader(0), writer.add_reader(0)
    ann.wake = lambda: woken.append("ann")  # type: ignore[method-assign]
    bob.wake = lambda: woken.append("bob")  # type: ignore[method-assign]
    writer.put(Delta("a", 1))

    assert woken == ["ann", "bob"]

    writer.remove_reader(ann)
    writer.put_text("b", 1, clock().now())
    writer.finish()

    assert woken[2:] == ["bob", "bob"]


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


ACTS: dict[str, Callable[[StreamWriter, Handle], Any]] = {
    "start": lambda writer, _: writer.start(None),
    "attach": lambda writer, handle: writer.attach(handle),
    "put": lambda writer, _: writer.put(Delta("x", 1)),
    "last": lambda writer, _: writer.put(Delta("y", 1, "stop")),
    "document": lambda writer, _: writer.put(Chunk(b"z")),
    "finish": lambda writer, _: writer.finish(),
    "fail": lambda writer, _: writer.fail(EngineFailed("Down.")),
    "cancel": lambda writer, _: writer.cancel(Cancelled("By its id.")),
    "seal": lambda writer, _: writer.flush(),
    "lose": lambda writer, _: writer.on_engine_lost(),
    "regain": lambda writer, _: writer.on_engine_recovered(),
}


@given(st.lists(st.sampled_from(sorted(ACTS)), max_size=12))
def test_a_stream_ends_exactly_once_whatever_comes_in_whatever_order(acts: list[str]) -> None:
    """Invariant I3: one terminal event, nothing after it, and its slot is given back once."""

    async def play() -> None:
        harness = WriterHarness()
        writer = harness.queued(2**20)
        writer.admit(await harness.gate.enter())
        output = b""
        for act in acts:
            state = writer.state
            ACTS[act](writer, harness.handle)
            if state in {State.RUNNING, State.RECOVERING}:
                output += {"put": b"x", "last": b"y", "document": b"z"}.get(act, b"")

            assert harness.gate.slots_taken == (0 if writer.ended else 1)
        writer.cancel(Cancelled("The client left."), Cause.DISCONNECTED)
        for act in ("put", "last", "finish", "fail", "cancel", "seal"):
            ACTS[act](writer, harness.handle)

        *events, end = documents(writer)
        assert b"".join(events) == output
        assert end in {b"end", b'"engine_failed"', b'"cancelled"'}
        assert harness.ends == 1
        assert harness.gate.slots_taken == 0
        assert writer.stats.completion_tokens == output.count(b"x") + output.count(b"y")
        if acts.count("attach") == 1:
            assert harness.handle.aborts <= 1

    run(play(), debug=False)


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
