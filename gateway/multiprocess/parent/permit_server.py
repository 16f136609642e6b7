"""The parent's side of admission: one gate for all workers. A worker's permits end with the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.admission.gate import AdmissionControl, Permit
from gateway.errors import Overloaded
from gateway.multiprocess.messages import AcquirePermit, ParentMessage, PermitGranted, PermitRefused, ReleasePermit


class NullGateMetrics:
    """The `GateMetrics` of the parent's gate, which reports nothing: each worker reports its own requests."""

    def waited(self, seconds: float) -> None: ...

    def rejected(self, reason: str) -> None: ...


class PermitServer:
    """The permits of one worker: each one is first a task that waits at the gate, then a permit that is held."""

    def __init__(self, gate: AdmissionControl, send: Callable[[ParentMessage], None]) -> None:
        self._gate = gate
        self._send = send
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, Permit] = {}

    def acquire(self, message: AcquirePermit) -> None:
        """Queue at the gate; the answer is sent when the gate has decided."""
        # Tasks start in the order in which they are created, so requests reach the gate in their order of arrival.
        task = asyncio.get_running_loop().create_task(self._enter(message))
        self._waiting[message.permit_id] = task
        task.add_done_callback(lambda _: self._waiting.pop(message.permit_id, None))

    def release(self, message: ReleasePermit) -> None:
        """Free the slots, or the place in the queue."""
        if (permit := self._held.pop(message.permit_id, None)) is not None:
            permit.release()
        elif (task := self._waiting.get(message.permit_id)) is not None:
            task.cancel()

    def release_all(self) -> None:
        """Free everything that the worker held or waited for: it is gone."""
        for task in list(self._waiting.values()):
            task.cancel()
        held, self._held = self._held, {}
        for permit in held.values():
            permit.release()

    async def _enter(self, message: AcquirePermit) -> None:
        try:
            permit = await self._gate.enter(message.slots)
        except Overloaded as error:
            self._send(PermitRefused(message.permit_id, error.message, error.reason, error.retry_after_s or 1))
            return
        self._held[message.permit_id] = permit
        self._send(PermitGranted(message.permit_id))
