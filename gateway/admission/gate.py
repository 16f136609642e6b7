"""The gate: a bounded number of slots in the engine, and a bounded queue in order of arrival.

A permit is held for as long as the engine works for the request and is released exactly once. The gate depends on
neither engines nor HTTP: it admits a request now, queues it, or refuses it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from gateway.admission.slots import SlotPool
from gateway.clock import Clock
from gateway.errors import ClientError, Overloaded


class GateMetrics(Protocol):
    """The part of `Instrumentation` that the gate uses."""

    def waited(self, seconds: float) -> None:
        """A request was admitted after that time in the queue."""

    def rejected(self, reason: str) -> None:
        """A request was refused."""


class AdmissionControl(Protocol):
    """Admits requests: a `Gate`, or a client of one in another process."""

    @property
    def queued(self) -> int:
        """The number of requests in the queue."""

    @property
    def slots_taken(self) -> int:
        """The number of slots in use."""

    async def enter(self, slots: int = 1) -> Permit:
        """See `Gate.enter`."""


@dataclass(slots=True, eq=False)
class Permit:
    """The right to use `slots` slots of the engine."""

    slots: int
    free: Callable[[], None]
    _released: bool = field(default=False, init=False)

    def release(self) -> None:
        """Free the slots. A second call does nothing, so every way out may call it."""
        if not self._released:
            self._released = True
            self.free()


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
        self._slots = SlotPool(max_concurrent)
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._clock = clock
        self._instrumentation = instrumentation
        self._queue: deque[_Waiter] = deque()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def slots_taken(self) -> int:
        return self._slots.taken

    async def enter(self, slots: int = 1) -> Permit:
        """Wait for slots.

        Raises ClientError if the request could never fit, Overloaded if the queue is full or the wait passed the queue
        timeout. A cancelled wait changes nothing.
        """
        if slots > self._slots.slots:
            raise exceeds_capacity(slots, self._slots.slots)
        if not self._queue and self._slots.fits(slots):
            self._slots.take(slots)
            self._instrumentation.waited(0.0)
            return Permit(slots, partial(self._free, slots, self._clock.now()))
        if len(self._queue) >= self._max_waiting:
            raise self._overloaded("queue_full", "The server is full and so is its queue.")
        return await self._wait(slots)

    async def _wait(self, slots: int) -> Permit:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(slots, loop.create_future())
        self._queue.append(waiter)
        began = self._clock.now()
        timer = loop.call_later(self._queue_timeout_s, self._expire, waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                # Granted and cancelled in the same turn of the loop: pass the slots on.
                self._slots.release(slots, None)
                self._grant()
            raise
        finally:
            timer.cancel()
            if waiter in self._queue:
                self._queue.remove(waiter)
                self._grant()
        self._instrumentation.waited(self._clock.now() - began)
        return Permit(slots, partial(self._free, slots, self._clock.now()))

    def _free(self, slots: int, granted_s: float) -> None:
        """Free slots that were granted at `granted_s`, and admit the next request."""
        self._slots.release(slots, self._clock.now() - granted_s)
        self._grant()

    def _grant(self) -> None:
        while self._queue:
            head = self._queue[0]
            if not head.granted.done():
                if not self._slots.fits(head.slots):
                    return
                self._slots.take(head.slots)
                head.granted.set_result(None)
            self._queue.popleft()

    def _expire(self, waiter: _Waiter) -> None:
        if not waiter.granted.done():
            waiter.granted.set_exception(
                self._overloaded(
                    "queue_timeout", f"The request waited {self._queue_timeout_s:g} s for a slot in the engine."
                )
            )

    def _overloaded(self, reason: str, message: str) -> Overloaded:
        self._instrumentation.rejected(reason)
        ahead = sum(waiter.slots for waiter in self._queue)
        return Overloaded(message, reason=reason, retry_after_s=self._slots.retry_after_s(ahead))


def exceeds_capacity(slots: int, most: int) -> ClientError:
    """The error of a request that could never fit."""
    return ClientError(
        f"This request asks for {slots} sequences at once; this server runs at most {most}. "
        f"Ask for a smaller n, or for fewer prompts in one request.",
        param="n",
    )
