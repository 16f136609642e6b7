"""The reader's side of a stream: wake once, take all that is new."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.streamlog.base import Batch
from gateway.streams.producer import Producer


class Outlet(Protocol):
    """Where news may go at once, past whoever waits for them: the middle of a stream to a client that keeps up needs
    nobody's attention, and a task switch for every token costs more than the token."""

    def open(self) -> bool:
        """Whether a batch put now would be on its way before `put` returns."""

    def put(self, batch: Batch) -> None:
        """Send a batch; never the last one."""


class Follower:
    """Follows one stream from a cursor to its end. `cursor` is the number of the last event taken."""

    def __init__(self, producer: Producer, cursor: int) -> None:
        self.cursor = cursor
        self._producer = producer
        self._loop = asyncio.get_running_loop()
        self._outlet: Outlet | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._due = False
        self._nudged = False
        self._failure: Exception | None = None
        producer.watch(self._wake)

    async def take(self, outlet: Outlet | None = None) -> Batch | None:
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

    def nudge(self) -> None:
        """Make a waiting `take` return without news."""
        if self._waiter is not None:
            self._nudged = True
            self._rouse()

    def close(self) -> None:
        """Stop following."""
        self._outlet = None
        self._producer.unwatch(self._wake)

    def _read(self) -> Batch | None:
        self._producer.seal()
        batch = self._producer.log.read(self.cursor)
        if batch is not None:
            self.cursor = batch.first + len(batch.documents) - 1
        return batch

    def _wake(self, at_once: bool) -> None:
        """There is something new."""
        if self._due or self._waiter is None or self._waiter.done():
            return
        outlet = self._outlet
        if outlet is None or not outlet.open():
            self._rouse()
        elif at_once and self._producer.ended is None:
            self._deliver(outlet)
        else:
            self._due = True
            self._loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        self._due = False
        outlet = self._outlet
        # Who is about to wake takes the news along, unless they have given up.
        if self._waiter is None or self._waiter.done():
            return
        if self._producer.ended is not None or outlet is None or not outlet.open():
            self._rouse()
        else:
            self._deliver(outlet)

    def _deliver(self, outlet: Outlet) -> None:
        try:
            batch = self._read()
            if batch is not None:
                # As in `take`.
                self._nudged = False
                outlet.put(batch)
        except Exception as error:
            # It concerns whoever waits, not whoever brings news.
            self._failure = error
            self._rouse()

    def _rouse(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


__all__ = ["Follower", "Outlet"]
