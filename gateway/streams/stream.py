"""One request of ours on its way: its producer, its readers, and the timers that may end it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.domain import Cause
from gateway.errors import Cancelled, ClientError, DeadlineExceeded
from gateway.streams.cancel_scope import ClientDisconnected
from gateway.streams.lifecycle import State
from gateway.streams.reader import StreamReader
from gateway.streams.writer import StreamWriter


class Stream:
    """`streaming`: whether the client wants events or a whole answer. `grace_s`: how long it goes on without a reader;
    None: not at all."""

    def __init__(self, writer: StreamWriter, *, streaming: bool, grace_s: float | None) -> None:
        self.writer = writer
        self.streaming = streaming
        self.grace_s = grace_s
        self.start_task: asyncio.Task[None] | None = None
        """The task that takes the request from the gate to the engine."""
        self.ends_by_s = 0.0
        """Its deadline, as a moment of the event loop's clock; set by `expire_in`."""
        self._readers = 0
        self._grace: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def id(self) -> str:
        """The id that its client sees."""
        assert self.writer.stats.id is not None
        return self.writer.stats.id

    @property
    def is_resumable(self) -> bool:
        """Whether it outlives its readers, and its events their reading."""
        return self.grace_s is not None

    @property
    def status(self) -> str:
        """`queued`, `running`, `recovering`, or the cause of its end."""
        ended = self.writer.ended
        return self.writer.state.name.lower() if ended is None else ended.cause.value

    def expire_in(self, left_s: float, timeout_s: float) -> None:
        """End with DeadlineExceeded in `left_s` seconds; `timeout_s` is what the client asked for."""
        self._deadline = asyncio.get_running_loop().call_later(left_s, self._expire, timeout_s)
        self.ends_by_s = self._deadline.when()

    @contextmanager
    def read(self, cursor: int = 0) -> Iterator[StreamReader]:
        """Follow the events after number `cursor`. When the last reader leaves, a plain stream ends, and a resumable
        one has its grace.

        Raises ClientError if there is no such event yet, Expired if the next one is kept no longer.
        """
        writer = self.writer
        self._check(cursor)
        reader = StreamReader(writer, cursor)
        self._readers += 1
        self._stop_grace()
        cause = Cause.DISCONNECTED
        try:
            yield reader
        except ClientDisconnected as left:
            cause = left.cause
            raise
        finally:
            reader.close()
            self._readers -= 1
            if self._readers == 0 and writer.state is not State.ENDED:
                if self.grace_s is None:
                    writer.cancel(Cancelled("The client left."), cause)
                else:
                    self._grace = asyncio.get_running_loop().call_later(self.grace_s, self._abandon)

    def check_cursor(self, cursor: int) -> None:
        """Raise what `read` would, and leave it at that; only for streams whose log keeps."""
        self._check(cursor)
        self.writer.log.read(cursor)

    def _check(self, cursor: int) -> None:
        # A cursor is what some reader has seen, and readers have seen only what is sealed.
        if cursor > self.writer.log.last:
            raise ClientError(
                f"There is no event {cursor} yet; the newest has number {self.writer.log.last}.",
                param="Last-Event-ID",
            )

    def is_fully_read(self, cursor: int) -> bool:
        """Whether a reader who has seen event number `cursor` has seen everything there will ever be."""
        return self.writer.ended is not None and cursor == self.writer.log.last

    def on_ended(self) -> None:
        """It has ended: nothing is to be waited for any more."""
        self._stop_grace()
        if self._deadline is not None:
            self._deadline.cancel()
        task = self.start_task
        ended = self.writer.ended
        if task is not None and task is not asyncio.current_task() and ended is not None and ended.error is not None:
            task.cancel()

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _abandon(self) -> None:
        self.writer.cancel(Cancelled("Nobody came back for this stream within its grace."))

    def _expire(self, timeout_s: float) -> None:
        writer = self.writer
        writer.cancel(overdue(timeout_s, writer.state is State.QUEUED, writer.stats.completion_tokens))


def overdue(timeout_s: float, queued: bool, tokens: int) -> DeadlineExceeded:
    """The error of a request that passed its deadline of `timeout_s`, and what had been spent on it."""
    spent = "while it waited; nothing was generated" if queued else f"after {tokens} completion tokens"
    return DeadlineExceeded(f"The request passed its deadline of {timeout_s:g} s {spent}.")


__all__ = ["Stream", "overdue"]
