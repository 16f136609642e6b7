"""Random operations on a whole harness of streams, and after each of them the invariants of the design:

- I1: what any reader holds is a prefix of the log (from where it began), byte for byte and number for number.
- I2: a log is numbered from 1 without gaps and only ever appended to.
- I3: a stream ends exactly once, with one terminal event, and nothing comes after it.
- I4: the engine works for a request exactly as long as its stream is live and started.
- I5: the slots taken are those of the live streams that the gate has let in; at rest there are none.
- I6: what is reported equals what happened: endings with their wasted tokens, and merged deltas.

Everything is real but the engine, which the machine scripts, and the time, which the machine moves. A
failure prints its operations as a script; `--hypothesis-seed` repeats a run, `--hypothesis-profile=full` makes it the
size that the design asks for (100,000 steps; minutes).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from gateway.domain import Cause, Endpoint
from gateway.errors import ClientError, Draining, EngineFailed, Expired, NotFound, Overloaded
from gateway.streams.registry import Status
from gateway.streams.stream import Stream
from tests.support.instrumentation import a_caller
from tests.support.stream_machine import LIMITS, QUEUE_TIMEOUT_S, Reader, Record, StreamMachine
from tests.support.time import settle

FULL = settings.get_current_profile_name() == "full"
EXAMPLES, STEPS = (2400, 50) if FULL else (80, 50)

# The other causes are for the edge to find.
ENDINGS = {
    Cause.COMPLETED,
    Cause.DISCONNECTED,
    Cause.CANCELLED,
    Cause.DEADLINE_EXCEEDED,
    Cause.ENGINE_FAILED,
    Cause.SERVER_DRAINING,
    Cause.REFUSED_DRAINING,
    Cause.OVERLOADED,
}


PICK = st.integers(0, 10**6)


class Machine(StreamMachine):
    """The harness, its clients, and what may happen to them; `StreamMachine` has the invariants."""

    # Clients.

    @rule(
        streaming=st.sampled_from([True, True, True, False]),
        grace_s=st.sampled_from([None, None, 0.0, 5.0, 30.0, 1000.0]),
        timeout_s=st.sampled_from([None, None, 20.0, 60.0]),
        slots=st.sampled_from([1, 1, 1, 2]),
        formatted=st.sampled_from([False, False, True]),
        owner=st.sampled_from([None, "ann", "bob"]),
    )
    def open(
        self,
        streaming: bool,
        grace_s: float | None,
        timeout_s: float | None,
        slots: int,
        formatted: bool,
        owner: str | None,
    ) -> None:
        harness = self.harness
        waiting = [record for record in self.live if record.stream.writer._permit is None]
        full = len(waiting) >= 4 and (waiting or harness.gate.slots_taken + slots > 3)
        live_bytes = sum(record.log.size_bytes for record in self.live)

        async def ask() -> Stream:
            return harness.open(
                owner=owner,
                timeout_s=timeout_s,
                grace_s=grace_s,
                endpoint=Endpoint.COMPLETION,
                stream=streaming,
                n=slots,
                formatted=formatted,
            )

        try:
            # Without settling: its reader comes in the same turn.
            stream = self.loop.run_until_complete(ask())
        except Draining:
            assert harness.registry.is_draining
            return
        except EngineFailed:
            assert self.lost
            return
        except Overloaded:
            assert streaming
            assert grace_s is not None
            assert live_bytes + LIMITS.max_bytes > LIMITS.max_total_bytes
            return
        now_s = self.clock.now()
        record = Record(stream, owner, slots, now_s + min(timeout_s or 120, 120), now_s + QUEUE_TIMEOUT_S)
        if full:
            record.due.add(Cause.OVERLOADED)
        self.records.append(record)
        self.attach(record, 0)
        self.do(settle())

    def attach(self, record: Record, cursor: int) -> None:
        async def enter() -> Reader:
            scope = record.stream.read(cursor)
            return Reader(record, scope, scope.__enter__(), cursor)

        self.readers.append(self.loop.run_until_complete(enter()))
        record.readers += 1
        record.unread_since_s = None

    @precondition(lambda self: any(one.stream.is_resumable for one in self.records))
    @rule(number=PICK, cursor=PICK)
    def come_back(self, number: int, cursor: int) -> None:
        """To a resumable stream, live or kept, from anywhere in it."""
        if (record := self.pick([one for one in self.records if one.stream.is_resumable], number)) is None:
            return
        try:
            stream = self.harness.registry.find(record.stream.id, a_caller(record.owner))
        except Expired:
            assert not record.live
            return
        assert stream is record.stream
        cursor %= record.log.last + 2
        if cursor > record.log.last:
            with pytest.raises(ClientError):
                self.attach(record, cursor)
        else:
            self.attach(record, cursor)

    @precondition(lambda self: self.readers)
    @rule(number=PICK)
    def take(self, number: int) -> None:
        """A reader reads; one that finds nothing new gives up its wait."""
        if (reader := self.pick(self.readers, number)) is None:
            return

        async def read() -> None:
            task = self.loop.create_task(reader.reader.next_batch())
            await settle()
            task.cancel()
            with suppress(asyncio.CancelledError):
                batch = await task
                assert batch is not None, "no keep-alive was requested"
                assert batch.first == reader.start + len(reader.held) + 1, "I1: by number"
                reader.held += batch.documents
                if batch.ended is not None:
                    assert reader.start + len(reader.held) == reader.record.log.last

        try:
            self.do(read())
        except Expired:
            assert reader.record.stream.is_resumable
            self.leave(reader)

    @precondition(lambda self: self.readers)
    @rule(number=PICK)
    def detach(self, number: int) -> None:
        if (reader := self.pick(self.readers, number)) is not None:
            self.leave(reader)

    @precondition(lambda self: self.records)
    @rule(number=PICK, owner=st.sampled_from([None, "ann", "bob"]))
    def cancel(self, number: int, owner: str | None) -> None:
        if (record := self.pick(self.records, number)) is None:
            return
        was_live = record.live
        if was_live and owner == record.owner:
            record.due.add(Cause.CANCELLED)

        async def cancel() -> Status | None:
            # With no engine there is no answer about requests that are not ours.
            with suppress(NotFound, Expired, *([EngineFailed] if self.lost else [])):
                return self.harness.registry.cancel(record.stream.id, a_caller(owner))
            return None

        status = self.do(cancel())
        assert record.live is (was_live and owner != record.owner)
        if status is None:
            assert owner != record.owner or not was_live
        else:
            assert owner == record.owner
            assert status.status == record.stream.status

    # The engine.

    @precondition(lambda self: self.running(formatted=False))
    @rule(
        number=PICK,
        texts=st.lists(st.sampled_from(["a", "", "\N{GRINNING FACE}", "word " * 20]), min_size=1, max_size=4),
    )
    def generate(self, number: int, texts: list[str]) -> None:
        if (found := self.pick(self.running(formatted=False), number)) is None:
            return
        record, run = found

        async def generate() -> None:
            for text in texts:
                run.put_text(text, 2)

        record.written += texts
        record.tokens += 2 * len(texts)
        self.do(generate())

    @precondition(lambda self: self.running(formatted=False))
    @rule(number=PICK)
    def generate_a_lot(self, number: int) -> None:
        """More than is kept unmerged."""
        self.generate(number, ["abcd"] * 130)

    @precondition(lambda self: self.running(formatted=True))
    @rule(number=PICK, size=st.sampled_from([0, 10, 500]))
    def document(self, number: int, size: int) -> None:
        if (found := self.pick(self.running(formatted=True), number)) is None:
            return
        record, run = found
        payload = orjson.dumps({"x": "x" * size})

        async def write() -> None:
            run.document(payload, 3)

        record.written.append(payload)
        record.tokens += 3
        self.do(write())

    @precondition(lambda self: self.running())
    @rule(number=PICK)
    def end(self, number: int) -> None:
        if (found := self.pick(self.running(), number)) is None:
            return
        record, run = found

        async def end() -> None:
            if run.prepared.template is None:
                run.finish()
            else:
                run.end("the end", tokens=1)

        record.due.add(Cause.COMPLETED)
        if run.prepared.template is not None:
            record.written.append("the end")
            record.tokens += 1
        self.do(end())

    @precondition(lambda self: any(run.live for run in self.harness.engine.runs))
    @rule(number=PICK)
    def fail(self, number: int) -> None:
        """The engine gives up on one, before or after it has handed over its handle."""
        by_id = {record.stream.id: record for record in self.records}
        if (run := self.pick([run for run in self.harness.engine.runs if run.live], number)) is None:
            return

        async def fail() -> None:
            run.fail(EngineFailed("The engine gave up."))

        by_id[run.id].due.add(Cause.ENGINE_FAILED)
        self.do(fail())

    @precondition(lambda self: any(not run.live for run in self.harness.engine.runs))
    @rule(number=PICK)
    def speak_too_late(self, number: int) -> None:
        """The abort has not reached the engine yet."""
        if (run := self.pick([run for run in self.harness.engine.runs if not run.live], number)) is None:
            return

        async def speak() -> None:
            run.put_text("late", 5)
            run.document(b'"late"')
            run.end("later")
            run.fail(EngineFailed("Late."))

        self.do(speak())

    @rule(stage=st.sampled_from(["prepare_hold", "submit_hold"]))
    def hold(self, stage: str) -> None:
        """The engine takes its time with new requests, or goes on."""

        async def toggle() -> None:
            engine = self.harness.engine
            held: asyncio.Event | None = getattr(engine, stage)
            setattr(engine, stage, asyncio.Event() if held is None else None)
            if held is not None:
                held.set()

        self.do(toggle())

    @rule(number=PICK)
    def lose_or_regain(self, number: int) -> None:
        """The engine dies; when it is back, some request may not be able to go on."""

        async def lose() -> None:
            self.harness.switch.lose()
            self.harness.registry.on_engine_lost()

        async def regain() -> None:
            self.harness.switch.regain()
            self.harness.registry.on_engine_recovered()

        self.lost = not self.lost
        self.do(lose() if self.lost else regain())
        if not self.lost and number % 2:
            self.fail(number)

    # Time.

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0, 31.0, 55.0]))
    def wait(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    @precondition(lambda self: self.drain is None and len(self.records) > 5)
    @rule(seconds=st.sampled_from([0.0, 20.0]))
    def begin_to_drain(self, seconds: float) -> None:
        async def begin() -> asyncio.Task[None]:
            return self.loop.create_task(self.harness.registry.drain(seconds))

        self.drained_by_s = self.clock.now() + seconds
        if not seconds:
            self.expect_drained()
        self.drain = self.do(begin())

    @precondition(lambda self: self.drain is not None and not self.live)
    @rule()
    def begin_anew(self) -> None:
        """Another process takes the place of one that has drained."""
        self.teardown()
        self.build()


@pytest.mark.timeout(3600 if FULL else 120)
def test_no_order_of_events_breaks_an_invariant() -> None:
    Machine.steps = 0
    Machine.endings.clear()
    run_state_machine_as_test(Machine, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS))
    print(f"{Machine.steps} steps, {Machine.endings.total()} endings: {dict(Machine.endings)}")

    assert Machine.steps >= (100_000 if FULL else 1_000)
    assert not FULL or set(Machine.endings) == ENDINGS, "every way to end has been gone"
