"""A worker's side of admission: an `AdmissionControl` that requests slots from the parent's gate.

Each request takes one round trip over the channel. When a worker dies, the parent releases all its permits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from gateway.admission.gate import GateMetrics, Permit, exceeds_capacity
from gateway.clock import Clock
from gateway.errors import Overloaded
from gateway.multiprocess.messages import AcquirePermit, PermitGranted, PermitRefused, ReleasePermit


@dataclass(slots=True, kw_only=True, eq=False)
class RemoteGate:
    """`max_concurrent` is the limit of all workers together."""

    max_concurrent: int
    clock: Clock
    instrumentation: GateMetrics
    send: Callable[[AcquirePermit | ReleasePermit], None]
    _permit_ids: Iterator[int] = field(default_factory=count, init=False)
    _unanswered: dict[int, asyncio.Future[None]] = field(default_factory=dict, init=False)
    slots_taken: int = field(default=0, init=False)
    """Slots in use by this worker."""

    @property
    def queued(self) -> int:
        """Requests of this worker that have no answer yet."""
        return len(self._unanswered)

    async def enter(self, slots: int = 1) -> Permit:
        """As `Gate.enter`."""
        if slots > self.max_concurrent:
            raise exceeds_capacity(slots, self.max_concurrent)
        permit_id = next(self._permit_ids)
        answer = self._unanswered[permit_id] = asyncio.get_running_loop().create_future()
        began_s = self.clock.now()
        self.send(AcquirePermit(permit_id, slots))
        try:
            await answer
        except asyncio.CancelledError:
            # The permit may have been granted or not: the parent handles either.
            self.send(ReleasePermit(permit_id))
            raise
        finally:
            self._unanswered.pop(permit_id, None)
        self.instrumentation.waited(self.clock.now() - began_s)
        self.slots_taken += slots
        return Permit(slots, partial(self._free, permit_id, slots))

    def on_granted(self, message: PermitGranted) -> None:
        answer = self._unanswered.get(message.permit_id)
        if answer is not None and not answer.done():
            answer.set_result(None)

    def on_refused(self, message: PermitRefused) -> None:
        answer = self._unanswered.get(message.permit_id)
        if answer is not None and not answer.done():
            self.instrumentation.rejected(message.reason)
            answer.set_exception(
                Overloaded(message.message, reason=message.reason, retry_after_s=message.retry_after_s)
            )

    def _free(self, permit_id: int, slots: int) -> None:
        self.slots_taken -= slots
        self.send(ReleasePermit(permit_id))
