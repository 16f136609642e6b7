"""The house's side of admission: one gate for all workers. A worker's permits end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.admission.gate import Gate, Permit
from gateway.errors import Overloaded
from gateway.multiprocess.messages import Ask, GiveBack, Granted, Order, Refused


class NullGateMetrics:
    """A `Witness` for the house's gate: of their requests the workers report themselves."""

    def waited(self, seconds: float) -> None:
        """Nothing."""

    def rejected(self, reason: str) -> None:
        """Nothing."""


class Permits:
    """What one worker has asked for: each ask is a task that waits at the gate, then a permit."""

    def __init__(self, gate: Gate, send: Callable[[Order], None]) -> None:
        self._gate = gate
        self._send = send
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, Permit] = {}

    def ask(self, message: Ask) -> None:
        """Queue for it; the answer is sent when it is known."""
        # Tasks begin in the order in which they are made, so the gate sees the order of arrival.
        task = asyncio.get_running_loop().create_task(self._enter(message))
        self._waiting[message.ask] = task
        task.add_done_callback(lambda _: self._waiting.pop(message.ask, None))

    def give_back(self, message: GiveBack) -> None:
        """Free the seats, or the place in the queue."""
        if (permit := self._held.pop(message.ask, None)) is not None:
            permit.release()
        elif (task := self._waiting.get(message.ask)) is not None:
            task.cancel()

    def clear(self) -> None:
        """The worker is gone, and with it everything it held or waited for."""
        for task in list(self._waiting.values()):
            task.cancel()
        held, self._held = self._held, {}
        for permit in held.values():
            permit.release()

    async def _enter(self, message: Ask) -> None:
        try:
            permit = await self._gate.enter(message.slots)
        except Overloaded as error:
            self._send(Refused(message.ask, error.message, error.reason, error.retry_after_s or 1))
            return
        self._held[message.ask] = permit
        self._send(Granted(message.ask))


__all__ = ["NullGateMetrics", "Permits"]
