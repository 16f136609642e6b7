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
from collections import Counter
from collections.abc import Coroutine
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.domain import Cause, Endpoint
from gateway.errors import ClientError, Draining, EngineFailed, Expired, NotFound, Overloaded
from gateway.streamlog.base import Ended
from gateway.streamlog.memory import MemoryLog
from gateway.streams.lifecycle import State
from gateway.streams.reader import StreamReader
from gateway.streams.registry import Limits, Status
from gateway.streams.stream import Stream
from tests.support.engine import Run
from tests.support.harness import StreamHarness
from tests.support.instrumentation import a_caller
from tests.support.time import VirtualClock, VirtualLoop, settle

T = TypeVar("T")

FULL = settings.get_current_profile_name() == "full"
EXAMPLES, STEPS = (2400, 50) if FULL else (80, 50)

QUEUE_TIMEOUT_S = 40.0
LIMITS = Limits(max_timeout_s=120, max_grace_s=30, retention_s=50, max_bytes=4096, max_total_bytes=3 * 4096)
# Later than this after its time, a timer has been forgotten; virtual time has no other delay.
LATE_S = 1e-3


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


class RecordingLog(MemoryLog):
    """A log that keeps every document that was appended, also those that were passed on or trimmed."""

    def __init__(self, keep_bytes: int | None, order: list[RecordingLog]) -> None:
        super().__init__(keep_bytes)
        self.history: list[bytes] = []
        self.ends: list[Ended] = []
        self.closing = 0
        self._order = order

    def append(self, documents: list[bytes]) -> None:
        before = self.last
        super().append(documents)
        if self.last > before:
            assert not self.ends, "I3: nothing after the end"
            self.history += documents
        assert self.last == len(self.history), "I2: numbered without gaps"

    def through(self, document: bytes) -> int:
        assert not self.ends, "I3: nothing after the end"
        known = len(self.history)
        number = super().append_delivered(document)
        if not self.is_retaining:
            self.history.append(document)
        assert number == self.last == len(self.history) == known + 1, "I2: numbered without gaps"
        return number

    def close(self, ended: Ended, documents: list[bytes]) -> None:
        open_ = self.ended is None
        super().close(ended, documents)
        if open_:
            self.ends.append(ended)
            self.closing = len(documents)
            self._order.append(self)


@dataclass(eq=False)
class Reader:
    """A follower of a stream; `held` is what has come since `start`."""

    record: Record
    scope: AbstractContextManager[StreamReader]
    reader: StreamReader
    start: int
    held: list[bytes] = field(default_factory=list)


@dataclass(eq=False)
class Record:
    """One stream and its state in the machine: what was written, and why it may have ended."""

    stream: Stream
    owner: str | None
    slots: int
    deadline_s: float
    queue_until_s: float
    written: list[str | bytes] = field(default_factory=list)
    tokens: int = 0
    readers: int = 0
    unread_since_s: float | None = None
    due: set[Cause] = field(default_factory=set)
    ended_s: float | None = None

    @property
    def log(self) -> RecordingLog:
        log = self.stream.writer.log
        assert isinstance(log, RecordingLog)
        return log

    @property
    def live(self) -> bool:
        return self.stream.writer.ended is None


PICK = st.integers(0, 10**6)


class Machine(RuleBasedStateMachine):
    """The harness and its clients."""

    steps = 0
    endings: ClassVar[Counter[Cause]] = Counter()

    @initialize()
    def build(self) -> None:
        self.clock = VirtualClock()
        self.loop = VirtualLoop(self.clock)
        self.complaints: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(repr(context)))
        self.records: list[Record] = []
        self.readers: list[Reader] = []
        self.order: list[RecordingLog] = []
        self.lost = False
        self.drain: asyncio.Task[None] | None = None
        self.drained_by_s = 0.0

        async def make() -> StreamHarness:
            def open_log(stream_id: str, keep_bytes: int | None, on_commit: object) -> RecordingLog:
                return RecordingLog(keep_bytes, order=self.order)

            return StreamHarness(max_concurrent=3, limits=LIMITS, queue_timeout_s=QUEUE_TIMEOUT_S, open_log=open_log)

        self.harness = self.do(make())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop, and all that follows from it at this moment."""

        async def and_settle() -> T:
            answer = await work
            await settle()
            return answer

        return self.loop.run_until_complete(and_settle())

    def pick(self, of: list[T], number: int) -> T | None:
        return of[number % len(of)] if of else None

    @property
    def live(self) -> list[Record]:
        return [record for record in self.records if record.live]

    def running(self, *, formatted: bool | None = None) -> list[tuple[Record, Run]]:
        """Live runs of the engine whose streams have started."""
        by_id = {record.stream.id: record for record in self.records}
        return [
            (by_id[run.id], run)
            for run in self.harness.engine.runs
            if run.live
            and by_id[run.id].stream.writer.state in {State.RUNNING, State.RECOVERING}
            and formatted in (None, run.prepared.template is None)
        ]

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

    def leave(self, reader: Reader) -> None:
        record = reader.record

        async def go() -> None:
            reader.scope.__exit__(None, None, None)

        self.readers.remove(reader)
        record.readers -= 1
        if record.live and not record.readers:
            record.unread_since_s = self.clock.now()
            if not record.stream.is_resumable:
                record.due.add(Cause.DISCONNECTED)
            elif record.stream.grace_s == 0:
                record.due.add(Cause.CANCELLED)
        self.do(go())

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

    def expect_drained(self) -> None:
        for record in self.live:
            record.due |= {Cause.SERVER_DRAINING, Cause.REFUSED_DRAINING}

    @precondition(lambda self: self.drain is not None and not self.live)
    @rule()
    def begin_anew(self) -> None:
        """Another process takes the place of one that has drained."""
        self.teardown()
        self.build()

    # What must hold after every step.

    @invariant()
    def everything_holds(self) -> None:
        Machine.steps += 1
        assert not self.complaints, self.complaints
        now_s = self.clock.now()
        if self.drain is not None and now_s >= self.drained_by_s:
            self.expect_drained()
            assert not self.live, "a drain is over at its deadline"
            assert self.drain.done()
        for record in self.records:
            self._check_timers(record, now_s)
            self._check_log(record)
        for reader in self.readers:
            held = reader.record.log.history[reader.start : reader.start + len(reader.held)]
            assert reader.held == held, "I1: what a reader holds is what the log has there"
        self._check_engine()
        self._check_slots()
        self._check_instrumentation()
        self._check_retention(now_s)

    def _check_timers(self, record: Record, now_s: float) -> None:
        """Every end has a reason, and every reason comes to its end in time."""
        writer, grace_s = record.stream.writer, record.stream.grace_s
        may = set(record.due)
        if record.deadline_s <= now_s:
            may.add(Cause.DEADLINE_EXCEEDED)
        if grace_s is not None and record.unread_since_s is not None and record.unread_since_s + grace_s <= now_s:
            may.add(Cause.CANCELLED)
        if record.queue_until_s <= now_s:
            may.add(Cause.OVERLOADED)
        if self.drain is not None and self.drained_by_s <= now_s:
            may |= {Cause.SERVER_DRAINING, Cause.REFUSED_DRAINING}
        if writer.ended is None:
            assert not record.due
            assert now_s < record.deadline_s + LATE_S
            assert now_s < record.queue_until_s + LATE_S or writer._permit is not None
            assert grace_s is None or record.unread_since_s is None or now_s < record.unread_since_s + grace_s + LATE_S
        elif record.ended_s is None:
            record.ended_s = now_s
            Machine.endings[writer.ended.cause] += 1
            assert writer.ended.cause in may, (writer.ended, may)
            if writer.ended.cause in {Cause.SERVER_DRAINING, Cause.REFUSED_DRAINING}:
                assert writer.stats.submitted == (writer.ended.cause is Cause.SERVER_DRAINING)

    def _check_log(self, record: Record) -> None:
        writer, log = record.stream.writer, record.log
        assert log.ends == ([] if writer.ended is None else [writer.ended]), "I3: one end"
        if log.is_retaining:
            assert log.size_bytes <= LIMITS.max_bytes or len(log._documents) == 1
            assert log._documents == log.history[log._start - 1 :], "I2: what is kept is what was appended"
        written = log.history[: len(log.history) - log.closing]
        unsealed = [*(pending(one) for one in writer._pending), *writer._texts]
        assert spelled([*map(read, written), *unsealed]) == spelled(record.written)
        if writer.ended is not None:
            assert not unsealed
            if record.stream.is_streaming:
                *error, done = log.history[len(written) :]
                assert done == b"[DONE]"
                codes = [orjson.loads(one)["error"]["code"] for one in error]
                assert codes == ([] if writer.ended.error is None else [writer.ended.error.code])

    def _check_engine(self) -> None:
        runs = {run.id: run for run in self.harness.engine.runs}
        assert len(runs) == len(self.harness.engine.runs), "a request is submitted once"
        for record in self.records:
            run = runs.get(record.stream.id)
            if not record.live:
                assert run is None or not run.live, "I4: nothing runs without a client"
            elif record.stream.writer.state is State.QUEUED:
                assert run is None
            else:
                assert run is not None
                assert run.live

    def _check_slots(self) -> None:
        gate = self.harness.gate
        admitted = [record for record in self.live if record.stream.writer._permit is not None]
        assert gate.slots_taken == sum(record.slots for record in admitted), "I5"
        assert gate.queued == len(self.live) - len(admitted)
        assert self.harness.registry.active == len(self.live)

    def _check_instrumentation(self) -> None:
        by_log = {record.log: record for record in self.records}
        endings = []
        for log in self.order:
            record = by_log[log]
            if record.stream.is_resumable:
                cause = log.ends[0].cause
                endings.append((cause, 0 if cause is Cause.COMPLETED else record.tokens))
        instrumentation = self.harness.instrumentation
        assert instrumentation.endings == endings, "I6: endings"
        assert all(record.stream.writer.stats.completion_tokens == record.tokens for record in self.records)
        merged = sum(
            len(record.written)
            - (len(record.log.history) - record.log.closing)
            - len(writer._pending)
            - len(writer._texts)
            for record in self.records
            for writer in (record.stream.writer,)
        )
        assert sum(instrumentation.spared) == merged, "I6: merged deltas"

    def _check_retention(self, now_s: float) -> None:
        retention = self.harness.registry.retention.finished
        ended = [log for log in self.order if log.is_retaining]
        kept = [stream.writer.log for _, stream in retention._streams.values()]
        assert kept == ended[len(ended) - len(kept) :], "the oldest go first"
        assert retention.size_bytes == sum(log.size_bytes for log in kept)
        assert retention.size_bytes <= LIMITS.max_total_bytes
        assert all(since_s + LIMITS.retention_s > now_s - LATE_S for since_s, _ in retention._streams.values())
        live_bytes = sum(record.log.size_bytes for record in self.live)
        assert self.harness.registry.kept_bytes == retention.size_bytes + live_bytes

    def teardown(self) -> None:
        """All that is left can be ended at once, and then the harness is at rest."""
        if not hasattr(self, "harness"):
            return
        try:
            self._close()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0.1))
            self.loop.close()
        assert not left

    def _close(self) -> None:
        async def end() -> None:
            self.harness.registry.end_all()
            # A request whose answer was complete before the engine had taken it still waits for its handle.
            for hold in (self.harness.engine.prepare_hold, self.harness.engine.submit_hold):
                if hold is not None:
                    hold.set()

        self.expect_drained()
        self.do(end())
        if self.drain is not None:
            self.do(asyncio.wait_for(self.drain, 0.1))
        assert self.harness.at_rest, "I5: at rest nothing is taken"
        assert not any(run.live for run in self.harness.engine.runs)
        assert {len(record.log.ends) for record in self.records} <= {1}, "I3: every stream has ended once"
        for reader in list(self.readers):
            self.leave(reader)


def read(document: bytes) -> str | bytes:
    """The text of a chunk of ours, or the document itself."""
    parsed = orjson.loads(document)
    return str(parsed["choices"][0]["text"]) if "choices" in parsed else document


def pending(piece: Any) -> str | bytes:
    text: str | bytes = piece.text if hasattr(piece, "text") else piece.payload
    return text


def spelled(pieces: list[str | bytes]) -> list[str | bytes]:
    """Runs of text joined: how they were cut does not matter."""
    out: list[str | bytes] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)
    return out


@pytest.mark.timeout(3600 if FULL else 120)
def test_no_order_of_events_breaks_an_invariant() -> None:
    Machine.steps = 0
    Machine.endings.clear()
    run_state_machine_as_test(Machine, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS))
    print(f"{Machine.steps} steps, {Machine.endings.total()} endings: {dict(Machine.endings)}")

    assert Machine.steps >= (100_000 if FULL else 1_000)
    assert not FULL or set(Machine.endings) == ENDINGS, "every way to end has been gone"
