"""Keeps one engine running and says whether it can serve.

The engine starts in the background while the socket is already open, so the supervisor is also where "not yet"
and "no longer" become errors that clients can act on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum

from gateway.engine.base import Engine
from gateway.errors import Draining, EngineFailed, NotReady, SettingsError, SluiceError

# What a start takes when it goes well (imports, weights, KV cache); a better guess than a constant 1 for Retry-After.
EXPECTED_START_S = 30


class Phase(StrEnum):
    """Where the engine is in its life."""

    STARTING = "starting"
    UP = "up"
    FAILED = "failed"
    STOPPED = "stopped"


class Supervisor:
    """Owns the engine from launch to stop."""

    def __init__(self, launch: Callable[[], Awaitable[Engine]], started_s: Callable[[], float]) -> None:
        """`launch` builds an engine; `started_s` tells the seconds since the process began."""
        self._launch = launch
        self._started_s = started_s
        self._engine: Engine | None = None
        self.phase = Phase.STARTING
        self.launching = False

    @property
    def engine(self) -> Engine:
        """The engine, if a request sent now can be served; otherwise the error to answer with."""
        if self.phase is Phase.UP and self._engine is not None:
            return self._engine
        raise self.unready()

    @property
    def ready(self) -> bool:
        """Whether `engine` would answer."""
        return self.phase is Phase.UP

    def unready(self) -> SluiceError:
        """Why there is no engine now, as an error for a client."""
        if self.phase is Phase.STARTING:
            left = max(1, round(EXPECTED_START_S - self._started_s()))
            return NotReady("The server is starting: its engine is not ready yet.", retry_after_s=left)
        if self.phase is Phase.STOPPED:
            return Draining("The server is stopping.", retry_after_s=1)
        return EngineFailed("The engine is down.", retry_after_s=EXPECTED_START_S)

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Launch the engine, then watch it. Returns only by raising.

        Raises SettingsError if it cannot start or if it dies: the process then exits non-zero, which is what
        restart policies look at.
        """
        self.launching = True
        try:
            self._engine = await self._launch()
        except Exception:
            self.launching = False
            self.phase = Phase.FAILED
            raise
        self.launching = False
        self.phase = Phase.UP
        on_ready()
        await self._engine.dead()
        self.phase = Phase.FAILED
        raise SettingsError("The engine died; see its last words above.", exit_code=1)

    async def stop(self) -> None:
        """End the engine; safe at any time."""
        self.phase = Phase.STOPPED
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.shield(engine.stop())


__all__ = ["Phase", "Supervisor"]
