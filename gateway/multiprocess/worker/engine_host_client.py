"""A worker's `EngineHost`: the addresses and the death of the engine that the parent process runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.engine.shared import SharedEngineClient
from gateway.errors import SettingsError
from gateway.multiprocess.messages import EngineAbandoned, EngineLost, EngineUnresponsive, EngineUp


class EngineHostClient:
    """Holds the state of the engine, as of the parent's latest messages."""

    def __init__(self, client_index: int, client_count: int, send: Callable[[EngineUnresponsive], None]) -> None:
        self.client_index = client_index
        self.client_count = client_count
        self.generation = 0
        """Of the engine of the latest addresses."""
        self.pids: Sequence[int] = ()
        self.trial_lock: Path | None = None
        self.client: SharedEngineClient | None = None
        self._send = send
        self._newest = EngineUp(0, {})
        self._lost = 0
        """The latest generation that has died."""
        self._abandoned: EngineAbandoned | None = None
        self._up_or_abandoned = asyncio.Event()
        self._some_lost = asyncio.Event()

    # For the engine.

    async def next_addresses(self) -> Mapping[str, str]:
        while self._abandoned is None and self._newest.generation <= max(self.generation, self._lost):
            self._up_or_abandoned.clear()
            await self._up_or_abandoned.wait()
        if self._abandoned is not None:
            raise SettingsError(self._abandoned.message, exit_code=1)
        self.generation, self.pids = self._newest.generation, self._newest.pids
        address = self._newest.addresses.get("input_address", "")
        if address.startswith("ipc://"):
            # The folder of the engine's sockets is the same for every worker.
            self.trial_lock = Path(address.removeprefix("ipc://")).parent / "trial.lock"
        return self._newest.addresses

    async def wait_lost(self) -> None:
        while self._lost < self.generation:
            self._some_lost.clear()
            await self._some_lost.wait()

    def attach(self, client: SharedEngineClient) -> None:
        self.client = client
        if self._lost >= self.generation or self._abandoned is not None:
            client.mark_lost()

    def report_unresponsive(self) -> None:
        self._send(EngineUnresponsive(self.generation))

    # Messages of the parent process.

    def on_engine_up(self, message: EngineUp) -> None:
        self._newest = message
        self._up_or_abandoned.set()

    def on_engine_lost(self, message: EngineLost) -> None:
        self._lost = max(self._lost, message.generation)
        self._some_lost.set()
        if self.client is not None and self.generation <= self._lost:
            self.client.mark_lost()

    def on_engine_abandoned(self, message: EngineAbandoned) -> None:
        self._abandoned = message
        self._up_or_abandoned.set()
