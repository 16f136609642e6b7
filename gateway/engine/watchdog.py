"""When an engine whose process lives does not serve, and when it counts as dead. Pure: it is told what can be observed.

The engine is asked something all the time, on the way that requests take: through the same socket, the busy loop of the
engine, and back. What is held against it is only time in which it had been asked and had not answered while this
process ran and had read everything that had arrived: a pause of ours is not the engine's silence. Neither is a long
step: an engine answers between two steps, and one that computes has a limit of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from gateway.engine.os_processes import Usage

# How much of one CPU an engine uses at the least while it works: it computes, or waits for a device by asking again and
# again. The threads of an idle one use a thousandth.
_BUSY_SHARE = 0.05
# Between two looks is so much time that counts, however much has passed: the rest is a pause of this process.
_COUNTED_PER_LOOK_S = 1.0
# An engine that is not busy answers within milliseconds.
_UNREADY_AFTER_S = 5.0
# Later answers than this mean that tokens are so late, too.
_BACKLOG_S = 10.0
# From here on the processes are looked at; and for so long, to tell whether they work.
_SUSPECT_AFTER_S = 1.0
_WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What can be observed of an engine at one moment.

    `asked_s`: when the question was sent that has not been answered, None if all have been. `heard_s`: when the engine
    last said anything. `is_behind`: whether something of the engine's has arrived that has not been read.
    """

    unanswered_since_s: float | None
    last_output_s: float
    has_backlog: bool


@dataclass(frozen=True, slots=True)
class Assessment:
    """`trouble`: why a request sent now would not be served soon, None if it would. `is_dead`: whether the engine is to
    be replaced for that reason."""

    unready_reason: str | None = None
    is_dead: bool = False


_HEALTHY = Assessment()


class Watchdog:
    """Judges one engine, from one look to the next."""

    def __init__(
        self, *, hang_timeout_s: float, long_step_timeout_s: float, usage: Callable[[], Usage | None], now_s: float
    ) -> None:
        """`hang_timeout_s`: how long an engine that does not compute may leave a question unanswered;
        `long_step_timeout_s`: the same for one that does. `usage` tells what its processes use, None if that cannot be
        known; it is called only while an answer is late."""
        self._hang_timeout_s = hang_timeout_s
        self._long_step_timeout_s = max(long_step_timeout_s, hang_timeout_s)
        self._unready_after_s = min(_UNREADY_AFTER_S, hang_timeout_s / 2)
        self._window_s = min(_WINDOW_S, hang_timeout_s / 2)
        self._usage = usage
        self._looked_s = now_s
        # Clocks that run only while this process does, and only while it also has read everything.
        self._running_s = 0.0
        self._reading_s = 0.0
        self._asked: tuple[float | None, float, float] = (None, 0.0, 0.0)
        self._heard: tuple[float, float] = (-inf, 0.0)
        self._passed_over: float | None = None
        self._used: deque[tuple[float, Usage]] = deque()

    def assess(self, now_s: float, seen: Observation) -> Assessment:
        """Judge by what is seen now; to be called about twice a second."""
        passed_s = min(now_s - self._looked_s, _COUNTED_PER_LOOK_S)
        self._looked_s = now_s
        self._running_s += passed_s
        if not seen.has_backlog:
            self._reading_s += passed_s
        if seen.unanswered_since_s != self._asked[0]:
            self._asked = seen.unanswered_since_s, self._running_s, self._reading_s
            self._passed_over = None
        if seen.last_output_s != self._heard[0]:
            self._heard = seen.last_output_s, self._reading_s
            if (
                self._passed_over is None
                and seen.unanswered_since_s is not None
                and seen.last_output_s > seen.unanswered_since_s
            ):
                # It has said something and not answered yet: that may come at any moment now, behind a long step.
                self._passed_over = self._reading_s
        if seen.unanswered_since_s is None:
            self._used.clear()
            return _HEALTHY
        waited_s = self._running_s - self._asked[1]
        unanswered_s = self._reading_s - self._asked[2]
        silent_s = self._reading_s - max(self._asked[2], self._heard[1])
        passed_over_s = 0.0 if self._passed_over is None else self._reading_s - self._passed_over
        return self._assess(waited_s, unanswered_s, silent_s, passed_over_s)

    def _assess(self, waited_s: float, unanswered_s: float, silent_s: float, passed_over_s: float) -> Assessment:
        if waited_s < min(_SUSPECT_AFTER_S, self._unready_after_s / 2):
            self._used.clear()
            return _HEALTHY
        is_busy = self._is_busy()
        # It goes on with what it has, and between any two steps it would have answered.
        reason = f"what is sent to the engine has not reached it for {unanswered_s:.0f} s"
        if passed_over_s - silent_s > self._hang_timeout_s:
            return Assessment(reason, is_dead=True)
        if passed_over_s - silent_s > self._unready_after_s:
            return Assessment(reason)
        if is_busy:
            reason = f"the engine has not answered for {silent_s:.0f} s, though it computes"
            if silent_s > self._long_step_timeout_s:
                return Assessment(reason, is_dead=True)
            if silent_s > self._hang_timeout_s:
                return Assessment(reason)
        else:
            reason = f"the engine has not answered for {silent_s:.0f} s and does not compute"
            if silent_s > self._hang_timeout_s:
                return Assessment(reason, is_dead=True)
            if silent_s > self._unready_after_s:
                return Assessment(reason)
        if waited_s - unanswered_s > _BACKLOG_S:
            return Assessment(f"what the engine says waits for {waited_s:.0f} s to be read")
        return _HEALTHY

    def _is_busy(self) -> bool:
        """Whether its processes have computed lately; also as long as that is not yet known."""
        now = self._usage()
        if now is None or now.is_stopped:
            self._used.clear()
            return False
        used = self._used
        used.append((self._running_s, now))
        while len(used) > 2 and used[1][0] <= self._running_s - self._window_s:
            used.popleft()
        began_s, before = used[0]
        looked_for_s = self._running_s - began_s
        if looked_for_s < self._window_s / 2:
            return True
        # A process that has ended takes its time along.
        return now.cpu_s < before.cpu_s or now.cpu_s - before.cpu_s >= looked_for_s * _BUSY_SHARE


__all__ = ["Assessment", "Observation", "Watchdog"]
