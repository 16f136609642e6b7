"""Fires events in order: each stream at its own times, or all that are ready together in the engine's next step.

Times follow from the previous due time, never from the actual one, so that lateness does not add up.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

from loadtest.mock.ground_truth import Lateness
from loadtest.mock.timer import Timer


class TimedEvent(Protocol):
    """Something that is done at its time."""

    def fire(self) -> int | None:
        """Returns after how many ns the event is due again, None for never."""


class Engine:
    """The mock's clock. Without `step_ns` every event has its own times."""

    def __init__(self, loop: asyncio.AbstractEventLoop, step_ns: Callable[[], int] | None, lateness: Lateness) -> None:
        self._step_ns = step_ns
        self._lateness = lateness
        self._timer = Timer(loop, self._wake)
        # With a number between, because events that are due together have no order of their own.
        self._heap: list[tuple[int, int, TimedEvent]] = []
        self._number = 0
        self._armed_ns = 0
        self._next_step_ns = 0
        self._freeze_ended_ns = 0

    def schedule(self, at_ns: int, event: TimedEvent) -> None:
        self._push(at_ns, event)
        self._arm()

    def freeze(self, for_s: float) -> None:
        """Block the whole process. Events that were due meanwhile are due at the end."""
        time.sleep(for_s)
        self._freeze_ended_ns = perf_counter_ns()

    def close(self) -> None:
        self._timer.close()

    def _push(self, at_ns: int, event: TimedEvent) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at_ns, self._number, event))

    def _due_ns(self) -> int:
        first = self._heap[0][0]
        return first if self._step_ns is None else max(first, self._next_step_ns)

    def _arm(self) -> None:
        if self._heap and (due := self._due_ns()) != self._armed_ns:
            self._armed_ns = due
            self._timer.set(due)

    def _wake(self) -> None:
        self._armed_ns = 0
        first = True
        while self._heap and (due := self._due_ns()) <= perf_counter_ns():
            due = max(due, self._freeze_ended_ns)
            if first:
                self._lateness.starts.add((perf_counter_ns() - due) // 1000)
                first = False
            if self._step_ns is None:
                self._fire([heapq.heappop(self._heap)], due)
            else:
                self._next_step_ns = due + self._step_ns()
                self._fire(self._ready(due), due)
        self._arm()

    def _ready(self, due_ns: int) -> list[tuple[int, int, TimedEvent]]:
        """The events of a step, in the order in which they became ready."""
        ready = []
        while self._heap and self._heap[0][0] <= due_ns:
            ready.append(heapq.heappop(self._heap))
        return ready

    def _fire(self, entries: list[tuple[int, int, TimedEvent]], due_ns: int) -> None:
        for _, _, event in entries:
            self._lateness.sends.add((perf_counter_ns() - due_ns) // 1000)
            wait_ns = event.fire()
            if wait_ns is not None:
                self._push(max(due_ns, self._freeze_ended_ns) + wait_ns, event)
