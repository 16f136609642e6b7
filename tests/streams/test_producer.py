from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.gate import Gate
from gateway.errors import Cancelled, EngineFailed
from gateway.model import Cause, Chunk, Delta, Piece
from gateway.streamlog.base import Batch, Ended
from gateway.streams.producer import Producer
from tests.support.facts import Recorder, a_tally
from tests.support.time import VirtualClock, in_virtual_time, run


class OpenLog:
    """A log that keeps everything, also what comes after the end."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.ends: list[Ended] = []

    def append(self, piece: Piece) -> None:
        self.pieces.append(piece)

    def close(self, ended: Ended) -> None:
        self.ends.append(ended)

    async def take(self) -> Batch:
        raise NotImplementedError


class Handle:
    def __init__(self) -> None:
        self.aborts = 0

    def abort(self) -> None:
        self.aborts += 1


class Bench:
    """A producer and everything around it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.facts = Recorder()
        self.gate = Gate(max_concurrent=1, max_waiting=0, queue_timeout_s=1, clock=self.clock, facts=Recorder())
        self.log = OpenLog()
        self.handle = Handle()
        self.ends = 0

    async def producer(self) -> Producer:
        def on_end() -> None:
            self.ends += 1

        return Producer(
            tally=a_tally(self.facts),
            log=self.log,
            permit=await self.gate.enter(),
            clock=self.clock,
            on_end=on_end,
        )


@in_virtual_time
async def test_pieces_are_appended_in_order_and_a_finish_reason_ends_the_stream() -> None:
    bench = Bench()
    producer = await bench.producer()
    producer.start()
    producer.attach(bench.handle)
    pieces = [Delta("a", 1), Delta("b", 2), Delta("c", 1, "stop")]
    for piece in pieces:
        producer.put(piece)

    assert bench.log.pieces == pieces
    assert bench.log.ends == [Ended(Cause.COMPLETED)]
    assert (bench.gate.taken, bench.ends, bench.handle.aborts) == (0, 1, 0)
    assert producer.tally.completion_tokens == 4


@in_virtual_time
async def test_ready_made_documents_end_with_finish() -> None:
    """The engine that formats counts its own tokens, so a chunk adds none."""
    bench = Bench()
    producer = await bench.producer()
    producer.start()
    producer.put(Chunk(b"{}"))
    producer.finish()

    assert bench.log.pieces == [Chunk(b"{}")]
    assert producer.ended == Ended(Cause.COMPLETED)
    assert producer.tally.completion_tokens == 0


@in_virtual_time
async def test_nothing_is_taken_before_the_start() -> None:
    bench = Bench()
    producer = await bench.producer()
    producer.put(Delta("early", 1))

    assert bench.log.pieces == []
    assert producer.tally.completion_tokens == 0

    producer.cancel(Cause.DISCONNECTED, Cancelled("The client left."))


@in_virtual_time
async def test_failure_ends_the_stream_with_the_cause_of_its_error_and_aborts_nothing() -> None:
    """The engine that failed has nothing left to abort."""
    bench = Bench()
    producer = await bench.producer()
    producer.start()
    producer.attach(bench.handle)
    error = EngineFailed("The engine gave up.")
    producer.fail(error)

    assert bench.log.ends == [Ended(Cause.ENGINE_FAILED, error)]
    assert (bench.gate.taken, bench.handle.aborts) == (0, 0)


@in_virtual_time
async def test_cancelling_frees_the_seat_and_the_sequence_at_once() -> None:
    bench = Bench()
    producer = await bench.producer()
    producer.start()
    producer.attach(bench.handle)
    producer.cancel(Cause.CANCELLED, Cancelled("By its id."))

    assert (bench.gate.taken, bench.handle.aborts, bench.ends) == (0, 1, 1)
    assert bench.log.ends[0].cause is Cause.CANCELLED


@in_virtual_time
async def test_a_cancellation_before_the_engine_has_answered_reaches_it_when_it_does() -> None:
    """Between submit and its handle there is an await, and a request may well be cancelled there."""
    bench = Bench()
    producer = await bench.producer()
    producer.start()
    producer.cancel(Cause.CANCELLED, Cancelled("By its id."))
    producer.attach(bench.handle)

    assert bench.handle.aborts == 1


@in_virtual_time
async def test_a_stream_that_was_complete_before_its_handle_came_is_not_aborted() -> None:
    bench = Bench()
    producer = await bench.producer()
    producer.start()
    producer.put(Delta("all", 1, "stop"))
    producer.attach(bench.handle)

    assert bench.handle.aborts == 0


@in_virtual_time
async def test_tokens_and_their_gaps_are_measured() -> None:
    bench = Bench()
    producer = await bench.producer()
    producer.start()
    bench.clock.advance(2.0)
    producer.put(Delta("a", 1))
    bench.clock.advance(0.5)
    producer.put(Delta("", 0))
    producer.put(Delta("b", 3))
    producer.finish()

    assert producer.tally.first_token_s == 1002.0
    assert bench.facts.gaps == [pytest.approx(0.5)]
    assert producer.tally.completion_tokens == 4


ACTS: dict[str, Callable[[Producer, Handle], Any]] = {
    "start": lambda producer, _: producer.start(),
    "attach": lambda producer, handle: producer.attach(handle),
    "put": lambda producer, _: producer.put(Delta("x", 1)),
    "last": lambda producer, _: producer.put(Delta("y", 1, "stop")),
    "finish": lambda producer, _: producer.finish(),
    "fail": lambda producer, _: producer.fail(EngineFailed("Down.")),
    "cancel": lambda producer, _: producer.cancel(Cause.CANCELLED, Cancelled("By its id.")),
}


@given(st.lists(st.sampled_from(sorted(ACTS)), max_size=12))
def test_a_stream_ends_exactly_once_whatever_comes_in_whatever_order(acts: list[str]) -> None:
    """Invariant I3: one terminal event, nothing after it, and its seat is given back once."""

    async def play() -> None:
        bench = Bench()
        producer = await bench.producer()
        for act in acts:
            before = len(bench.log.pieces)
            over = producer.ended is not None
            ACTS[act](producer, bench.handle)

            assert not (over and len(bench.log.pieces) > before)
            assert bench.gate.taken == (0 if producer.ended else 1)
        producer.cancel(Cause.DISCONNECTED, Cancelled("The client left."))

        assert len(bench.log.ends) == bench.ends == 1
        assert bench.gate.taken == 0
        assert producer.tally.completion_tokens == len(bench.log.pieces)
        if acts.count("attach") == 1:
            assert bench.handle.aborts <= 1

    run(play(), debug=False)
