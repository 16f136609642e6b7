"""The gate: at most so many seats in the engine, at most so many requests waiting, in order of arrival.

A permit is held for as long as the engine works for the request and is given back exactly once. The gate knows
nothing of engines or HTTP; it answers "now", "wait" or "no".
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from gateway.admission.slots import Budget
from gateway.clock import Clock
from gateway.errors import ClientError, Overloaded


class GateMetrics(Protocol):
    """What of `Instrumentation` the gate reports."""

    def waited(self, seconds: float) -> None:
        """A request left the waiting room after this long."""

    def rejected(self, reason: str) -> None:
        """A request was turned away."""


class PermitIssuer(Protocol):
    """Where seats go back to."""

    def give_back(self, slots: int, granted_s: float) -> None:
        """Free seats that were granted at `granted_s`."""


class AdmissionControl(Protocol):
    """Whoever lets requests in: a `Gate`, or somebody who asks one in another process."""

    @property
    def waiting(self) -> int:
        """Requests in the waiting room."""

    @property
    def taken(self) -> int:
        """Seats in use."""

    async def enter(self, slots: int = 1) -> Permit:
        """See `Gate.enter`."""


class Permit:
    """The right to use `slots` seats of the engine."""

    __slots__ = ("_gate", "_granted_s", "_released", "slots")

    def __init__(self, gate: PermitIssuer, slots: int, granted_s: float) -> None:
        self._gate = gate
        self._granted_s = granted_s
        self._released = False
        self.slots = slots

    def release(self) -> None:
        """Give the seats back. A second call does nothing, so every way out may call it."""
        if not self._released:
            self._released = True
            self._gate.give_back(self.slots, self._granted_s)


@dataclass(slots=True, eq=False)
class _Waiter:
    slots: int
    granted: asyncio.Future[None]


class Gate:
    """First come, first served: a large request at the head is not overtaken, so it cannot starve."""

    def __init__(
        self,
        *,
        max_concurrent: int,
        max_waiting: int,
        queue_timeout_s: float,
        clock: Clock,
        instrumentation: GateMetrics,
    ) -> None:
        self._budget = Budget(max_concurrent)
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._clock = clock
        self._instrumentation = instrumentation
        self._waiting: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the waiting room."""
        return len(self._waiting)

    @property
    def taken(self) -> int:
        """Seats in use."""
        return self._budget.taken

    async def enter(self, slots: int = 1) -> Permit:
        """Wait for `slots` seats.

        Raises ClientError if the request could never fit, Overloaded if the waiting room is full or the wait
        passed the queue timeout. A cancelled wait leaves no trace.
        """
        if slots > self._budget.slots:
            raise exceeds_capacity(slots, self._budget.slots)
        if not self._waiting and self._budget.fits(slots):
            self._budget.take(slots)
            self._instrumentation.waited(0.0)
            return Permit(self, slots, self._clock.now())
        if len(self._waiting) >= self._max_waiting:
            raise self._overloaded("queue_full", "The server is full and so is its waiting room.")
        return await self._wait(slots)

    async def _wait(self, slots: int) -> Permit:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(slots, loop.create_future())
        self._waiting.append(waiter)
        began = self._clock.now()
        timer = loop.call_later(self._queue_timeout_s, self._expire, waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                # Granted and cancelled in the same turn of the loop: pass the seats on.
                self._budget.give_back(slots, None)
                self._grant()
            raise
        finally:
            timer.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._grant()
        self._instrumentation.waited(self._clock.now() - began)
        return Permit(self, slots, self._clock.now())

    def give_back(self, slots: int, granted_s: float) -> None:
        """Free seats and let the next in; called by permits."""
        self._budget.give_back(slots, self._clock.now() - granted_s)
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            head = self._waiting[0]
            if not head.granted.done():
                if not self._budget.fits(head.slots):
                    return
                self._budget.take(head.slots)
                head.granted.set_result(None)
            self._waiting.popleft()

    def _expire(self, waiter: _Waiter) -> None:
        if not waiter.granted.done():
            waiter.granted.set_exception(
                self._overloaded(
                    "queue_timeout", f"The request waited {self._queue_timeout_s:g} s for a seat in the engine."
                )
            )

    def _overloaded(self, reason: str, message: str) -> Overloaded:
        self._instrumentation.rejected(reason)
        ahead = sum(waiter.slots for waiter in self._waiting)
        return Overloaded(message, reason=reason, retry_after_s=self._budget.retry_after_s(ahead))


def exceeds_capacity(slots: int, most: int) -> ClientError:
    """The error of a request that could never fit."""
    return ClientError(
        f"This request asks for {slots} sequences at once; this server runs at most {most}. "
        f"Ask for a smaller n, or for fewer prompts in one request.",
        param="n",
    )


__all__ = ["AdmissionControl", "Gate", "GateMetrics", "Permit", "exceeds_capacity"]
