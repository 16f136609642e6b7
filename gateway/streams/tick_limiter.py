"""Starting a request takes milliseconds of the event loop. A thousand that arrive together must not all start in one
turn of it: running streams and health checks would wait for seconds."""

from __future__ import annotations

import asyncio
from collections import deque


class TickLimiter:
    """Admits at most `per_turn` callers in each turn of the event loop, in order. A single caller does not wait."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._armed = False

    async def wait_turn(self) -> None:
        """Pass now, or in one of the next turns."""
        loop = asyncio.get_running_loop()
        if self._left and not self._waiting:
            self._left -= 1
            self._arm(loop)
            return
        passing = loop.create_future()
        self._waiting.append(passing)
        await passing

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._armed:
            self._armed = True
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._armed = False
        self._left = self._per_turn
        while self._left and self._waiting:
            passing = self._waiting.popleft()
            # It may have been cancelled.
            if not passing.done():
                passing.set_result(None)
                self._left -= 1
        if self._left < self._per_turn:
            self._arm(loop)
