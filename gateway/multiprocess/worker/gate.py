"""A worker's side of admission: the gate, as `admission.gate` is to those who ask, with the house behind it.

A request that asks takes one round trip over the channel. What the house grants is given back in the same way; a
worker that dies gives everything back by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

from gateway.admission.gate import GateMetrics, Permit, exceeds_capacity
from gateway.clock import Clock
from gateway.errors import Overloaded
from gateway.multiprocess.messages import AcquirePermit, PermitGranted, PermitRefused, ReleasePermit


class RemoteGate:
    """Stands where `Gate` stands."""

    def __init__(
        self,
        *,
        max_concurrent: int,
        clock: Clock,
        instrumentation: GateMetrics,
        send: Callable[[AcquirePermit | ReleasePermit], None],
    ) -> None:
        self._max_concurrent = max_concurrent
        self._clock = clock
        self._instrumentation = instrumentation
        self._send = send
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[None]] = {}
        self.taken = 0
        """Seats in use by this worker."""

    @property
    def waiting(self) -> int:
        """Requests of this worker that have no answer yet."""
        return len(self._asked)

    async def enter(self, slots: int = 1) -> Permit:
        """As `Gate.enter`."""
        if slots > self._max_concurrent:
            raise exceeds_capacity(slots, self._max_concurrent)
        ask = next(self._numbers)
        answer = self._asked[ask] = asyncio.get_running_loop().create_future()
        began_s = self._clock.now()
        self._send(AcquirePermit(ask, slots))
        try:
            await answer
        except asyncio.CancelledError:
            # Granted or not: the house knows what to do about either.
            self._send(ReleasePermit(ask))
            raise
        finally:
            self._asked.pop(ask, None)
        self._instrumentation.waited(self._clock.now() - began_s)
        self.taken += slots
        return Permit(_Return(self, ask), slots, self._clock.now())

    def on_granted(self, message: PermitGranted) -> None:
        """The house has said yes."""
        answer = self._asked.get(message.permit_id)
        if answer is not None and not answer.done():
            answer.set_result(None)

    def on_refused(self, message: PermitRefused) -> None:
        """The house has said no."""
        answer = self._asked.get(message.permit_id)
        if answer is not None and not answer.done():
            self._instrumentation.rejected(message.reason)
            answer.set_exception(
                Overloaded(message.message, reason=message.reason, retry_after_s=message.retry_after_s)
            )

    def release(self, ask: int, slots: int) -> None:
        """Called by permits."""
        self.taken -= slots
        self._send(ReleasePermit(ask))


class _Return:
    """Where one permit's seats go back to."""

    __slots__ = ("_ask", "_gate")

    def __init__(self, gate: RemoteGate, ask: int) -> None:
        self._gate = gate
        self._ask = ask

    def give_back(self, slots: int, granted_s: float) -> None:
        self._gate.release(self._ask, slots)


__all__ = ["RemoteGate"]
