"""Time, behind a protocol that tests implement with virtual time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The only source of time for all packages."""

    def now(self) -> float:
        """Monotonic seconds; comparable with the event loop's own time."""

    def wall(self) -> float:
        """Unix seconds, for time stamps outside the process. Never for durations."""


class SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
