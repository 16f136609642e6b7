"""Time, behind a protocol, so that tests can bring their own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The only source of time for rooms."""

    def now(self) -> float:
        """Monotonic seconds; comparable with the event loop's own time."""

    def wall(self) -> float:
        """Unix seconds, for time stamps that leave the process. Never for durations."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


__all__ = ["Clock", "SystemClock"]
