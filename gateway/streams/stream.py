"""One request on its way: its writer, its readers, and the timers that may end it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field

from gateway.domain import Cause, RequestStats
from gateway.errors import Cancelled, ClientError, DeadlineExceeded, SluiceError
from gateway.protocols.base import StreamProtocol
from gateway.streams.cancel_scope import ClientDisconnected
from gateway.streams.lifecycle import State
from gateway.streams.reader import StreamReader
from gateway.streams.writer import StreamWriter


class NoSuchEvent(ClientError):
    """A cursor behind the newest event. The transport names the parameter that held it."""


@dataclass(slots=True, eq=False)
class Stream:
    """`is_streaming`: whether the client requested events or a whole answer. `grace_s`: how long it goes on without a
    reader; None: not at all."""

    writer: StreamWriter
    protocol: StreamProtocol
    _: KW_ONLY
    is_streaming: bool
    grace_s: float | None
    start_task: asyncio.Task[None] | None = field(default=None, init=False)
    """The task that takes the request from the gate to the engine."""
    ends_by_s: float = field(default=0.0, init=False)
    """Its deadline, as a moment of the event loop's clock; set by `expire_in`."""
    _readers: int = field(default=0, init=False)
    _grace: asyncio.TimerHandle | None = field(default=None, init=False)
    _deadline: asyncio.TimerHandle | None = field(default=None, init=False)

    @property
    def stats(self) -> RequestStats:
        """The count of its request."""
        return self.writer.stats

    @property
    def id(self) -> str:
        """The id that its client sees."""
        assert self.stats.id is not None
        return self.stats.id

    @property
    def owner(self) -> str | None:
        """The API key of its client, by name."""
        return self.stats.caller.owner

    @property
    def is_resumable(self) -> bool:
        """Whether the stream goes on without readers, and its events stay after they have been read."""
        return self.grace_s is not None

    @property
    def has_output(self) -> bool:
        """As in `StreamWriter`."""
        return self.writer.has_output

    @property
    def status(self) -> str:
        """`queued`, `running`, `recovering`, or the cause of its end."""
        ended = self.writer.ended
        return self.writer.state.name.lower() if ended is None else ended.cause.value

    @property
    def last_event(self) -> int:
        """The number of the newest event that readers can see."""
        return self.writer.log.committed

    @property
    def log_bytes(self) -> int:
        """The size of its retained events."""
        return self.writer.log.size_bytes

    def expire_in(self, left_s: float, timeout_s: float) -> None:
        """End with DeadlineExceeded in `left_s` seconds; `timeout_s` is the deadline that the client was given."""
        self._deadline = asyncio.get_running_loop().call_later(left_s, self._expire, timeout_s)
        self.ends_by_s = self._deadline.when()

    def cancel(self, error: SluiceError) -> None:
        """End the stream and free its sequence in the engine."""
        self.writer.cancel(error)

    @contextmanager
    def read(self, cursor: int = 0) -> Iterator[StreamReader]:
        """Follow the events after number `cursor`. When the last reader leaves, a plain stream ends, and the grace of a
        resumable one begins.

        Raises NoSuchEvent if there is no such event yet, Expired if the next one is kept no longer.
        """
        self._check_exists(cursor)
        reader = self.writer.add_reader(cursor)
        self._readers += 1
        self._stop_grace()
        cause = Cause.DISCONNECTED
        try:
            yield reader
        except ClientDisconnected as disconnected:
            cause = disconnected.cause
            raise
        finally:
            self.writer.remove_reader(reader)
            self._readers -= 1
            if self._readers == 0 and self.writer.state is not State.ENDED:
                if self.grace_s is None:
                    self.writer.cancel(Cancelled("The client left."), cause)
                else:
                    gone = Cancelled("The stream was not resumed within its grace.")
                    self._grace = asyncio.get_running_loop().call_later(self.grace_s, self.writer.cancel, gone)

    def check_cursor(self, cursor: int) -> None:
        """Raise the errors of `read`, without a read; only for streams whose log retains events."""
        self._check_exists(cursor)
        self.writer.log.read(cursor)

    def _check_exists(self, cursor: int) -> None:
        # A cursor comes from a reader, and readers see only events of the log: pending output has no number yet.
        if cursor > self.last_event:
            raise NoSuchEvent(f"There is no event {cursor} yet; the newest has number {self.last_event}.")

    def is_fully_read(self, cursor: int) -> bool:
        """Whether no event will follow number `cursor`."""
        return self.writer.ended is not None and cursor == self.last_event

    def on_ended(self) -> None:
        """The writer has ended: stop the timers, and the start of a request that failed before it was submitted."""
        self._stop_grace()
        if self._deadline is not None:
            self._deadline.cancel()
        task, ended = self.start_task, self.writer.ended
        if task is not None and task is not asyncio.current_task() and ended is not None and ended.error is not None:
            task.cancel()

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _expire(self, timeout_s: float) -> None:
        self.writer.cancel(
            deadline_error(timeout_s, self.stats.completion_tokens, is_queued=self.writer.state is State.QUEUED)
        )


def deadline_error(timeout_s: float, tokens: int, *, is_queued: bool) -> DeadlineExceeded:
    """The error of a request that passed its deadline of `timeout_s`, with the tokens that it has cost."""
    spent = "while it waited; nothing was generated" if is_queued else f"after {tokens} completion tokens"
    return DeadlineExceeded(f"The request passed its deadline of {timeout_s:g} s {spent}.")
