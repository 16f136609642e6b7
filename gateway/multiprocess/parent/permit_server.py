"""The house's side of admission: one gate for all workers. A worker's permits end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.admission.gate import Gate, Permit
from gateway.errors import Overloaded
from gateway.multiprocess.messages import AcquirePermit, ParentMessage, PermitGranted, PermitRefused, ReleasePermit


class NullGateMetrics:
    """A `Witness` for the house's gate: of their requests the workers report themselves."""

    def waited(self, seconds: float) -> None:
        """Nothing."""

    def rejected(self, reason: str) -> None:
        """Nothing."""


class PermitServer:
    """What one worker has asked for: each ask is a task that waits at the gate, then a permit."""

    def __init__(self, gate: Gate, send: Callable[[ParentMessage], None]) -> None:
        self._gate = gate
        self._send = send
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, Permit] = {}

    def acquire(self, message: AcquirePermit) -> None:
        """Queue for it; the answer is sent when it is known."""
        # Tasks begin in the order in which they are made, so the gate sees the order of arrival.
        task = asyncio.get_running_loop().create_task(self._enter(message))
        self._waiting[message.permit_id] = task
        task.add_done_callback(lambda _: self._waiting.pop(message.permit_id, None))

    def release(self, message: ReleasePermit) -> None:
        """Free the seats, or the place in the queue."""
        if (permit := self._held.pop(message.permit_id, None)) is not None:
            permit.release()
        elif (task := self._waiting.get(message.permit_id)) is not None:
            task.cancel()

    def release_all(self) -> None:
        """The worker is gone, and with it everything it held or waited for."""
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


__all__ = ["NullGateMetrics", "PermitServer"]
