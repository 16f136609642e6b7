"""The reader's side of a stream: one wake-up, then all that is new.

The middle of a stream to a client that keeps up needs no task: a task switch for every token costs more than the token.
While a connection is writable, events go to it in the turn of the loop in which they come (`DirectSink`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.clock import Clock
from gateway.protocols.base import Framing
from gateway.streamlog.base import Batch, StreamLog


class DirectSink(Protocol):
    """A connection in the middle of a response, for writes that pass no coroutine."""

    def is_writable(self) -> bool:
        """Whether a response has begun that can be added to, and the client keeps up."""

    def write(self, data: bytes) -> None:
        """Add to the response's body, in this turn of the loop; only while it is writable."""

    def flush(self) -> None:
        """Send what has been written, before anything that is sent otherwise."""

    def abort(self) -> None:
        """Break the connection at once, whatever is still in its buffers."""


class StreamReader:
    """Follows one stream from a cursor to its end. `cursor` is the number of the last event taken."""

    def __init__(self, log: StreamLog, cursor: int, flush: Callable[[], None], clock: Clock) -> None:
        """`flush` makes events of the output that has none yet."""
        self.cursor = cursor
        self.delivered_s = 0.0
        """When events went directly to the sink, last."""
        self._log = log
        self._flush = flush
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._sink: DirectSink | None = None
        self._frame: Framing | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_delivery_due = False
        self._is_keepalive_due = False
        self._failure: Exception | None = None

    async def next_batch(self) -> Batch | None:
        """Wait for events and take all of them; None if `request_keepalive` was called meanwhile. While a direct sink
        is writable, events go there and the wait goes on.

        Raises Expired if the reader came so late that its next event is kept no longer.
        """
        while True:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            batch = self._take()
            if batch is not None:
                # Events keep a connection alive, too.
                self._is_keepalive_due = False
                return batch
            if self._is_keepalive_due:
                self._is_keepalive_due = False
                return None
            # A wake-up need not come with an event: some tokens add no text.
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def deliver_to(self, sink: DirectSink, frame: Framing) -> None:
        """From now on, events that come while `next_batch` waits go to `sink`, if that is writable. The last one never
        does."""
        self._sink, self._frame = sink, frame

    def request_keepalive(self) -> None:
        """Make a waiting `next_batch` return without events."""
        if self._waiter is not None:
            self._is_keepalive_due = True
            self._wake_task()

    def close(self) -> None:
        """Deliver nothing any more."""
        self._sink = None

    # For the writer.

    def wake(self) -> None:
        """There is output, and there may be more in the same turn of the loop."""
        if self._is_delivery_due or not self._is_waiting():
            return
        if self._sink is None or not self._sink.is_writable():
            self._wake_task()
        else:
            self._is_delivery_due = True
            self._loop.call_soon(self._deliver_new)

    def is_caught_up(self, last: int) -> bool:
        """Whether event number `last` is taken, and an event that follows it can be delivered now."""
        waiter, sink = self._waiter, self._sink
        return (
            self.cursor == last
            and sink is not None
            and not self._is_delivery_due
            and waiter is not None
            and not waiter.done()
            and sink.is_writable()
        )

    def deliver(self, number: int, documents: list[bytes], now_s: float) -> None:
        """Take the next events, of which the first has that number; only if caught up, and never the last one of the
        stream."""
        assert self._sink is not None
        assert self._frame is not None
        self._is_keepalive_due = False
        self.cursor = number + len(documents) - 1
        self.delivered_s = now_s
        try:
            self._sink.write(self._frame(documents, number))
        except Exception as error:
            self._fail(error)

    def _take(self) -> Batch | None:
        self._flush()
        batch = self._log.read(self.cursor)
        if batch is not None:
            self.cursor = batch.first + len(batch.documents) - 1
        return batch

    def _is_waiting(self) -> bool:
        # A task that is about to wake takes all events with it, unless it has been cancelled.
        return self._waiter is not None and not self._waiter.done()

    def _deliver_new(self) -> None:
        self._is_delivery_due = False
        if not self._is_waiting():
            return
        if self._log.ended is not None or self._sink is None or not self._sink.is_writable():
            self._wake_task()
            return
        try:
            batch = self._take()
        except Exception as error:
            self._fail(error)
            return
        if batch is not None:
            self.deliver(batch.first, batch.documents, self._clock.now())

    def _fail(self, error: Exception) -> None:
        """Raise it in `next_batch`, and not in the engine's output handler."""
        self._failure = error
        self._wake_task()

    def _wake_task(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
