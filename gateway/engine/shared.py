"""Engine processes that a parent process runs and several client processes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class SharedEngineClient(Protocol):
    """A client of engine processes that its own process has not started."""

    @property
    def stats_received_s(self) -> Mapping[int, float]:
        """By engine: when its last scheduler statistics arrived here. It sends them to one client at a time."""

    @property
    def has_requests(self) -> bool:
        """Whether any request of this client is in the engine."""

    def mark_lost(self) -> None:
        """The engine has died."""

    async def abort_client(self, number: int) -> None:
        """Have the engine abort all requests of another client, which has died."""


class EngineHost(Protocol):
    """The process that runs the engine, as one of its `client_count` clients sees it; indices count from 0."""

    @property
    def client_index(self) -> int: ...

    @property
    def client_count(self) -> int: ...

    @property
    def trial_lock(self) -> Path | None:
        """A file that all clients of the engine of the latest addresses can lock; None where there is none."""

    @property
    def pids(self) -> Sequence[int]:
        """The processes of the engine of the latest addresses."""

    async def next_addresses(self) -> Mapping[str, str]:
        """Wait for the next engine and return this client's socket addresses. Raises SettingsError if no other engine
        will be started."""

    async def wait_lost(self) -> None:
        """Return when the engine of the latest addresses has died."""

    def attach(self, client: SharedEngineClient) -> None:
        """Call `client.mark_lost` when the engine of the latest addresses dies, at once if it is dead already."""

    def report_unresponsive(self) -> None:
        """This engine does not answer: the host ends it and starts another one."""


__all__ = ["EngineHost", "SharedEngineClient"]
