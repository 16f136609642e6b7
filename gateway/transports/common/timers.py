"""One timer for the deadlines of many connections: keep-alives that are due, and connections that are stuck.

A task or a timer per stream would cost more than the streams. Here a connection is checked at most once per period, and
a token costs nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from itertools import count

from gateway.clock import Clock

Check = Callable[[float], float]
"""Called with the time in monotonic seconds; does the due work and returns the time of its next call (inf: never)."""


class DeadlineTimer:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, Check]] = []
        self._numbers = count()
        self._removed: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = math.inf

    def __len__(self) -> int:
        return len(self._due) - len(self._removed)

    def add(self, check: Check, first_s: float) -> int:
        """Call `check` first at `first_s`. Returns the number for `remove`."""
        number = next(self._numbers)
        heapq.heappush(self._due, (first_s, number, check))
        self._arm()
        return number

    def remove(self, number: int) -> None:
        """Call the check no more. Its entry is dropped when it is due, or when half of all entries are removed ones."""
        self._removed.add(number)
        if len(self._removed) * 2 > len(self._due) + 64:
            self._due = [entry for entry in self._due if entry[1] not in self._removed]
            heapq.heapify(self._due)
            self._removed.clear()

    def _arm(self) -> None:
        first_s = self._due[0][0] if self._due else math.inf
        if first_s == math.inf:
            return
        if self._timer is not None:
            if self._wakes_s <= first_s:
                return
            self._timer.cancel()
        self._wakes_s = first_s
        left_s = max(0.0, first_s - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(left_s, self._run_due)

    def _run_due(self) -> None:
        self._timer = None
        now_s = self._clock.now()
        while self._due and self._due[0][0] <= now_s:
            _, number, check = heapq.heappop(self._due)
            if number in self._removed:
                self._removed.discard(number)
                continue
            # A check that is never due again stays until it is removed.
            heapq.heappush(self._due, (check(now_s), number, check))
        self._arm()
