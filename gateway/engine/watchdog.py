"""When an engine whose process lives does not serve, and when it counts as dead. Pure: its input are observations.

The engine is probed all the time, on the way that requests take: through the same socket, the busy loop of the engine,
and back. Time counts against it only while a probe is unanswered, this process runs, and this process has read all that
has arrived: a pause of ours is not a silence of the engine. Neither is a long step: an engine answers between two
steps, and one that computes has a longer limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from gateway.engine.os_processes import Usage

# The least share of one CPU that a working engine uses: it computes, or polls a device. The threads of an idle one use
# a thousandth.
_BUSY_SHARE = 0.05
# The most time that counts between two observations: the rest is a pause of this process.
_COUNTED_PER_OBSERVATION_S = 1.0
# An engine that is not busy answers within milliseconds.
_UNREADY_AFTER_S = 5.0
# Answers that are later than this mean that tokens are late by as much.
_BACKLOG_S = 10.0
# After this time without an answer the CPU time of the processes is read, over a window of this length.
_SUSPECT_AFTER_S = 1.0
_WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Observation:
    """An engine at one moment.

    `unanswered_since_s`: when the probe was sent that has not been answered, None if there is none. `last_output_s`:
    when the newest output came. `has_backlog`: whether outputs have arrived that have not been read.
    """

    unanswered_since_s: float | None
    last_output_s: float
    has_backlog: bool


@dataclass(frozen=True, slots=True)
class Assessment:
    """`unready_reason`: why a request sent now would not be served soon, None if it would. `is_dead`: whether the
    engine is to be replaced for that reason."""

    unready_reason: str | None = None
    is_dead: bool = False


_HEALTHY = Assessment()


class Watchdog:
    """Assesses one engine, from one observation to the next."""

    def __init__(
        self, *, hang_timeout_s: float, long_step_timeout_s: float, usage: Callable[[], Usage | None], now_s: float
    ) -> None:
        """`hang_timeout_s`: how long an engine that does not compute may leave a probe unanswered;
        `long_step_timeout_s`: the same for one that does. `usage` returns the usage of its processes, None if it is not
        known; it is called only while an answer is late."""
        self._hang_timeout_s = hang_timeout_s
        self._long_step_timeout_s = max(long_step_timeout_s, hang_timeout_s)
        self._unready_after_s = min(_UNREADY_AFTER_S, hang_timeout_s / 2)
        self._window_s = min(_WINDOW_S, hang_timeout_s / 2)
        self._usage = usage
        self._observed_s = now_s
        # Clocks that run only while this process does, and only while it also has read all that has arrived.
        self._running_s = 0.0
        self._reading_s = 0.0
        self._probe: tuple[float | None, float, float] = (None, 0.0, 0.0)
        self._output: tuple[float, float] = (-inf, 0.0)
        self._passed_over: float | None = None
        self._used: deque[tuple[float, Usage]] = deque()

    def assess(self, now_s: float, seen: Observation) -> Assessment:
        """To be called about twice a second."""
        passed_s = min(now_s - self._observed_s, _COUNTED_PER_OBSERVATION_S)
        self._observed_s = now_s
        self._running_s += passed_s
        if not seen.has_backlog:
            self._reading_s += passed_s
        if seen.unanswered_since_s != self._probe[0]:
            self._probe = seen.unanswered_since_s, self._running_s, self._reading_s
            self._passed_over = None
        if seen.last_output_s != self._output[0]:
            self._output = seen.last_output_s, self._reading_s
            if (
                self._passed_over is None
                and seen.unanswered_since_s is not None
                and seen.last_output_s > seen.unanswered_since_s
            ):
                # An output has come since, but no answer: that may come at any moment now, behind a long step.
                self._passed_over = self._reading_s
        if seen.unanswered_since_s is None:
            self._used.clear()
            return _HEALTHY
        waited_s = self._running_s - self._probe[1]
        unanswered_s = self._reading_s - self._probe[2]
        silent_s = self._reading_s - max(self._probe[2], self._output[1])
        passed_over_s = 0.0 if self._passed_over is None else self._reading_s - self._passed_over
        return self._assess(waited_s, unanswered_s, silent_s, passed_over_s)

    def _assess(self, waited_s: float, unanswered_s: float, silent_s: float, passed_over_s: float) -> Assessment:
        if waited_s < min(_SUSPECT_AFTER_S, self._unready_after_s / 2):
            self._used.clear()
            return _HEALTHY
        is_busy = self._is_busy()
        # It goes on with the requests that it has, and between any two steps it would have answered.
        overdue_s = passed_over_s - silent_s
        if overdue_s > self._unready_after_s:
            reason = f"requests have not reached the engine for {unanswered_s:.0f} s"
            return Assessment(reason, is_dead=overdue_s > self._hang_timeout_s)
        if is_busy and silent_s > self._hang_timeout_s:
            reason = f"the engine has not answered for {silent_s:.0f} s, though it computes"
            return Assessment(reason, is_dead=silent_s > self._long_step_timeout_s)
        if not is_busy and silent_s > self._unready_after_s:
            reason = f"the engine has not answered for {silent_s:.0f} s and does not compute"
            return Assessment(reason, is_dead=silent_s > self._hang_timeout_s)
        if waited_s - unanswered_s > _BACKLOG_S:
            return Assessment(f"outputs of the engine wait for {waited_s:.0f} s to be read")
        return _HEALTHY

    def _is_busy(self) -> bool:
        """Whether its processes have computed lately. True as long as that is not known yet."""
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
        # The time of a process that has ended is no longer in the sum.
        return now.cpu_s < before.cpu_s or now.cpu_s - before.cpu_s >= looked_for_s * _BUSY_SHARE
