from __future__ import annotations

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
from tests.support.time import clock, in_virtual_time, run

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
