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


class EngineProcesses(Protocol):
    """The engine processes of one start, in the process that runs them."""

    @property
    def addresses(self) -> Sequence[Mapping[str, str]]:
        """The socket addresses of each client, by its index."""

    @property
    def pids(self) -> Sequence[int]: ...

    async def wait_dead(self) -> None:
        """Return when any of the processes has died."""

    def kill(self) -> None:
        """Kill them, without time to finish anything."""

    async def end(self) -> None:
        """Terminate those that are left, and wait for their end."""
