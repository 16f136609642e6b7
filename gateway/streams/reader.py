"""The reader's side of a stream: wake once, take all that is new."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.streamlog.base import Batch
from gateway.streams.writer import StreamWriter


class Outlet(Protocol):
    """Where news may go at once, past whoever waits for them: the middle of a stream to a client that keeps up needs
    nobody's attention, and a task switch for every token costs more than the token."""

    def is_writable(self) -> bool:
        """Whether a batch put now would be on its way before `put` returns."""

    def write(self, first: int, documents: list[bytes]) -> None:
        """Send events, of which the first has that number; never the last one."""


class StreamReader:
    """Follows one stream from a cursor to its end. `cursor` is the number of the last event taken."""

    def __init__(self, writer: StreamWriter, cursor: int) -> None:
        self.cursor = cursor
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._outlet: Outlet | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._due = False
        self._nudged = False
        self._failure: Exception | None = None
        writer.add_reader(self)

    async def next_batch(self, outlet: Outlet | None = None) -> Batch | None:
        """Wait for news and take all of it; None if somebody nudged. While the outlet is open, news go there and the
        wait goes on.

        Raises Expired if the reader came so late that its next event is kept no longer.
        """
        self._outlet = outlet
        while True:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            batch = self._read()
            if batch is not None:
                # News are a sign of life, too.
                self._nudged = False
                return batch
            if self._nudged:
                self._nudged = False
                return None
            # What woke us need not be an event: some tokens add no text.
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def request_keepalive(self) -> None:
        """Make a waiting `take` return without news."""
        if self._waiter is not None:
            self._nudged = True
            self._rouse()

    def close(self) -> None:
        """Stop following."""
        self._outlet = None
        self._writer.remove_reader(self)

    def _read(self) -> Batch | None:
        self._writer.flush()
        batch = self._writer.log.read(self.cursor)
        if batch is not None:
            self.cursor = batch.first + len(batch.documents) - 1
        return batch

    # `Reader`, for the producer.

    def wake(self) -> None:
        if self._due or not self._waits:
            return
        if self._outlet is None or not self._outlet.is_writable():
            self._rouse()
        else:
            self._due = True
            self._loop.call_soon(self._deliver)

    def is_caught_up(self, last: int) -> bool:
        outlet = self._outlet
        return self.cursor == last and outlet is not None and not self._due and self._waits and outlet.is_writable()

    def deliver(self, number: int, document: bytes) -> None:
        self._put(number, [document])

    @property
    def _waits(self) -> bool:
        # Who is about to wake takes the news along, unless they have given up.
        return self._waiter is not None and not self._waiter.done()

    def _deliver(self) -> None:
        self._due = False
        if not self._waits:
            return
        outlet = self._outlet
        if self._writer.ended is not None or outlet is None or not outlet.is_writable():
            self._rouse()
            return
        try:
            batch = self._read()
        except Exception as error:
            self._fail(error)
            return
        if batch is not None:
            self._put(batch.first, batch.documents)

    def _put(self, first: int, documents: list[bytes]) -> None:
        assert self._outlet is not None
        # News are a sign of life.
        self._nudged = False
        self.cursor = first + len(documents) - 1
        try:
            self._outlet.write(first, documents)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """It concerns whoever waits, not whoever brings news."""
        self._failure = error
        self._rouse()

    def _rouse(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


__all__ = ["Outlet", "StreamReader"]
