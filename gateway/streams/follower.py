"""The reader's side of a stream: wake once, take all that is new."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.errors import Expired
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
        producer.watch(self._wake)

    async def take(self, outlet: Outlet | None = None) -> Batch | None:
        """Wait for news and take all of it; None if somebody nudged. While the outlet is open, news go there and the
        wait goes on.

        Raises Expired if the reader came so late that its next event is kept no longer.
        """
        self._outlet = outlet
        while True:
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

    def _wake(self) -> None:
        """There is something new."""
        if self._due or self._waiter is None:
            return
        if self._outlet is not None and self._outlet.open():
            # Not here: more may come in this turn of the loop, for this stream and for others.
            self._due = True
            self._loop.call_soon(self._pass_on)
        else:
            self._rouse()

    def _pass_on(self) -> None:
        self._due = False
        outlet = self._outlet
        if self._waiter is None:
            return
        if self._producer.ended is not None or outlet is None or not outlet.open():
            self._rouse()
            return
        try:
            batch = self._read()
        except Expired:
            # Said again to whoever waits.
            self._rouse()
            return
        if batch is not None:
            # As in `take`.
            self._nudged = False
            outlet.put(batch)

    def _rouse(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


__all__ = ["Follower", "Outlet"]
