"""How late the event loop is. One loop serves every stream, so its lag is what all of them wait for."""

from __future__ import annotations

import asyncio

from gateway.clock import Clock
from gateway.domain import Instrumentation

# Ten looks a second cost less than one token, and a loop that is late all the time is seen within a scrape.
EVERY_S = 0.1


class LoopLag:
    """Reports by how much its timer is late, ten times a second."""

    def __init__(self, clock: Clock, instrumentation: Instrumentation) -> None:
        self._clock = clock
        self._instrumentation = instrumentation
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch the running loop."""
        self._due_s = self._clock.now() + EVERY_S
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._measure)

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _measure(self) -> None:
        # Loops count in whole milliseconds and may wake early.
        self._instrumentation.loop_lag(max(0.0, self._clock.now() - self._due_s))
        self.start()


__all__ = ["EVERY_S", "LoopLag"]
