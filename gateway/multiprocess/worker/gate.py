"""A worker's side of admission: an `AdmissionControl` that asks the parent's gate.

Each request takes one round trip over the channel. When a worker dies, the parent releases all its permits.
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
    """`max_concurrent` is the limit of all workers together."""

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
        self._permit_ids = count()
        self._unanswered: dict[int, asyncio.Future[None]] = {}
        self.slots_taken = 0
        """Slots in use by this worker."""

    @property
    def queued(self) -> int:
        """Requests of this worker that have no answer yet."""
        return len(self._unanswered)

    async def enter(self, slots: int = 1) -> Permit:
        """As `Gate.enter`."""
        if slots > self._max_concurrent:
            raise exceeds_capacity(slots, self._max_concurrent)
        permit_id = next(self._permit_ids)
        answer = self._unanswered[permit_id] = asyncio.get_running_loop().create_future()
        began_s = self._clock.now()
        self._send(AcquirePermit(permit_id, slots))
        try:
            await answer
        except asyncio.CancelledError:
            # The permit may have been granted or not: the parent handles either.
            self._send(ReleasePermit(permit_id))
            raise
        finally:
            self._unanswered.pop(permit_id, None)
        self._instrumentation.waited(self._clock.now() - began_s)
        self.slots_taken += slots
        return Permit(_Issuer(self, permit_id), slots, self._clock.now())

    def on_granted(self, message: PermitGranted) -> None:
        answer = self._unanswered.get(message.permit_id)
        if answer is not None and not answer.done():
            answer.set_result(None)

    def on_refused(self, message: PermitRefused) -> None:
        answer = self._unanswered.get(message.permit_id)
        if answer is not None and not answer.done():
            self._instrumentation.rejected(message.reason)
            answer.set_exception(
                Overloaded(message.message, reason=message.reason, retry_after_s=message.retry_after_s)
            )

    def release(self, permit_id: int, slots: int) -> None:
        """Called through permits."""
        self.slots_taken -= slots
        self._send(ReleasePermit(permit_id))


class _Issuer:
    """The `PermitIssuer` of one permit."""

    __slots__ = ("_gate", "_permit_id")

    def __init__(self, gate: RemoteGate, permit_id: int) -> None:
        self._gate = gate
        self._permit_id = permit_id

    def release(self, slots: int, granted_s: float) -> None:
        self._gate.release(self._permit_id, slots)
