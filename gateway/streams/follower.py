"""The reader's side of a stream: wake once, take all that is new."""

from __future__ import annotations

import asyncio

from gateway.streamlog.base import Batch
from gateway.streams.producer import Producer


class Follower:
    """Follows one stream from a cursor to its end. `cursor` is the number of the last event taken."""

    def __init__(self, producer: Producer, cursor: int) -> None:
        self.cursor = cursor
        self._producer = producer
        self._waiter: asyncio.Future[None] | None = None
        self._nudged = False
        producer.watch(self._wake)

    async def take(self) -> Batch | None:
        """Wait for news and take all of it; None if somebody nudged.

        Raises Expired if the reader came so late that its next event is kept no longer.
        """
        while True:
            self._producer.seal()
            batch = self._producer.log.read(self.cursor)
            if batch is not None:
                self.cursor = batch.first + len(batch.documents) - 1
                # News are a sign of life, too.
                self._nudged = False
                return batch
            if self._nudged:
                self._nudged = False
                return None
            # What woke us need not be an event: some tokens add no text.
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def nudge(self) -> None:
        """Make a waiting `take` return without news."""
        if self._waiter is not None:
            self._nudged = True
            self._wake()

    def close(self) -> None:
        """Stop following."""
        self._producer.unwatch(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


__all__ = ["Follower"]
