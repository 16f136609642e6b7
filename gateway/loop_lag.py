"""Measures the event loop's lag. One loop serves all streams, so its lag delays each of them."""

from __future__ import annotations

import asyncio

from gateway.clock import Clock
from gateway.domain import Instrumentation

# Ten measurements a second cost less than one token, and a permanent lag shows within one scrape.
EVERY_S = 0.1


class LoopLag:
    """Reports the delay of its own timer, ten times a second."""

    def __init__(self, clock: Clock, instrumentation: Instrumentation) -> None:
        self._clock = clock
        self._instrumentation = instrumentation
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to measure the running loop."""
        self._due_s = self._clock.now() + EVERY_S
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._measure)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _measure(self) -> None:
        # Loops count in whole milliseconds and may wake early, hence `max`.
        self._instrumentation.loop_lag(max(0.0, self._clock.now() - self._due_s))
        self.start()
