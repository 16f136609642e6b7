"""A worker's side of the engine: whose processes belong to the house. A `EngineHost` for the engine room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.engine.shared import SharedEngineClient
from gateway.errors import SettingsError
from gateway.multiprocess.messages import EngineAbandoned, EngineLost, EngineUnresponsive, EngineUp


class EngineHostClient:
    """Knows where the engine of the day is, as far as the house has said so."""

    def __init__(self, client_index: int, client_count: int, send: Callable[[EngineUnresponsive], None]) -> None:
        self.client_index = client_index
        self.client_count = client_count
        self.generation = 0
        """Of the engine whose addresses were given last."""
        self.pids: Sequence[int] = ()
        self.trial_lock: Path | None = None
        self.client: SharedEngineClient | None = None
        self._send = send
        self._newest = EngineUp(0, {})
        self._lost = 0
        self._given_up: EngineAbandoned | None = None
        self._news = asyncio.Event()
        self._losses = asyncio.Event()

    # What the engine room asks: `EngineHost`.

    async def next_addresses(self) -> Mapping[str, str]:
        while self._given_up is None and self._newest.generation <= max(self.generation, self._lost):
            self._news.clear()
            await self._news.wait()
        if self._given_up is not None:
            raise SettingsError(self._given_up.message, exit_code=1)
        self.generation, self.pids = self._newest.generation, self._newest.pids
        address = self._newest.addresses.get("input_address", "")
        if address.startswith("ipc://"):
            # The folder of the sockets is the house's, and every worker's.
            self.trial_lock = Path(address.removeprefix("ipc://")).parent / "trial.lock"
        return self._newest.addresses

    async def wait_lost(self) -> None:
        while self._lost < self.generation:
            self._losses.clear()
            await self._losses.wait()

    def attach(self, client: SharedEngineClient) -> None:
        self.client = client
        if self._lost >= self.generation or self._given_up is not None:
            client.mark_lost()

    def report_unresponsive(self) -> None:
        self._send(EngineUnresponsive(self.generation))

    # What the house says.

    def on_engine_up(self, message: EngineUp) -> None:
        """There is an engine."""
        self._newest = message
        self._news.set()

    def on_engine_lost(self, message: EngineLost) -> None:
        """It has died."""
        self._lost = max(self._lost, message.generation)
        self._losses.set()
        if self.client is not None and self.generation <= self._lost:
            self.client.mark_lost()

    def on_engine_abandoned(self, message: EngineAbandoned) -> None:
        """There will be no other."""
        self._given_up = message
        self._news.set()


__all__ = ["EngineHostClient"]
