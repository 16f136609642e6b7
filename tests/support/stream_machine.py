"""The state machine of the streams' model check: the state that it expects, and the invariants after every step."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import orjson
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from gateway.domain import Cause
from gateway.streamlog.base import Ended
from gateway.streamlog.memory import MemoryLog
from gateway.streams.lifecycle import State
from gateway.streams.reader import StreamReader
from gateway.streams.registry import Limits
from gateway.streams.stream import Stream
from tests.support.engine import Run
from tests.support.harness import StreamHarness
from tests.support.time import VirtualClock, VirtualLoop, settle

T = TypeVar("T")

QUEUE_TIMEOUT_S = 40.0
LIMITS = Limits(max_timeout_s=120, max_grace_s=30, retention_s=50, max_bytes=4096, max_total_bytes=3 * 4096)
# Later than this after its time, a timer has been forgotten; virtual time has no other delay.
LATE_S = 1e-3


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


class StreamMachine(RuleBasedStateMachine):
    """A harness of streams and its clients, without operations."""

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

    def expect_drained(self) -> None:
        for record in self.live:
            record.due |= {Cause.SERVER_DRAINING, Cause.REFUSED_DRAINING}

    # What must hold after every step.

    @invariant()
    def everything_holds(self) -> None:
        type(self).steps += 1
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
            self.endings[writer.ended.cause] += 1
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
