"""Keeps one engine running and reports whether it can serve.

The engine starts in the background while the socket is already open, and a dead one is replaced while streams wait,
so the supervisor also turns "not yet" and "not now" into errors that clients can act on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from gateway.clock import Clock
from gateway.engine.base import RecoveryReport, Restartable
from gateway.errors import Draining, EngineFailed, NotReady, SettingsError, SluiceError

logger = logging.getLogger("sluice")

E = TypeVar("E", bound=Restartable)

# The time of a start that goes well (imports, weights, KV cache); a better guess than a constant 1 for Retry-After.
EXPECTED_START_S = 30.0
# The least Retry-After, as a share of the time that a start has taken already.
_LATE_SHARE = 0.25
# An engine that dies at its start would otherwise be started as fast as it dies. The first restart is not delayed.
_BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class Phase(StrEnum):
    STARTING = "starting"
    UP = "up"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(eq=False)
class Supervisor(Generic[E]):
    """Owns one engine from its launch to its stop.

    `launch` builds an engine. After `max_restarts` restarts within `window_s` seconds the next death is final; None:
    `restart` counts, and raises SettingsError when no further engine will be started. `on_lost` is called at each
    death, `on_recovered` after each successful restart.
    """

    launch: Callable[[], Awaitable[E]]
    max_restarts: int | None
    window_s: float
    clock: Clock
    on_lost: Callable[[], None]
    on_recovered: Callable[[RecoveryReport], None]

    def __post_init__(self) -> None:
        self._engine: E | None = None
        self._began_s = self.clock.now()
        self._start_took_s = EXPECTED_START_S
        self._restarts: deque[float] = deque()
        self._explained_restarts: deque[float] = deque()
        self._changed: asyncio.Future[None] | None = None
        self.phase = Phase.STARTING
        self.is_launching = False

    @property
    def engine(self) -> E:
        """The engine, if a request sent now can be served; otherwise the error to answer with."""
        if self.phase is Phase.UP and self._engine is not None:
            return self._engine
        raise self.not_ready_error()

    @property
    def readiness_error(self) -> SluiceError | None:
        """The error for a request that would not be served soon; None if it would be."""
        if not self.is_ready or self._engine is None:
            return self.not_ready_error()
        reason = self._engine.unready_reason
        return None if reason is None else EngineFailed(f"The engine does not serve now: {reason}.", retry_after_s=5)

    async def wait_ready(self) -> E:
        """Wait while the engine is being restarted. Raises as `engine` if it does not come back."""
        while self.phase is Phase.RESTARTING:
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._changed)
        return self.engine

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now can be served."""
        return self.phase is Phase.UP

    def not_ready_error(self) -> SluiceError:
        """The error for a client while there is no engine."""
        passed_s = self.clock.now() - self._began_s
        # A start that is late has no estimate any more. A client with a few retries must not use them up in seconds.
        left_s = round(max(self._start_took_s - passed_s, passed_s * _LATE_SHARE))
        if self.phase is Phase.STARTING:
            return NotReady("The server is starting: its engine is not ready yet.", retry_after_s=left_s)
        if self.phase is Phase.RESTARTING:
            return EngineFailed("The engine has died and is being restarted.", retry_after_s=left_s)
        if self.phase is Phase.STOPPED:
            return Draining("The server is stopping.", retry_after_s=1)
        return EngineFailed("The engine is down.", retry_after_s=round(EXPECTED_START_S))

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Launch the engine, watch it, and restart it when it dies. Returns only by raising.

        Raises SettingsError if it cannot start, or if it dies too often: the process then exits non-zero, which restart
        policies depend on.
        """
        try:
            with self._mark_launching():
                self._engine = await self.launch()
        except Exception:
            self._set_phase(Phase.FAILED)
            raise
        self._start_took_s = self.clock.now() - self._began_s
        self._set_phase(Phase.UP)
        on_ready()
        while True:
            await self._engine.wait_dead()
            await self._restart(self._engine)

    async def run_until_failure(
        self, on_ready: Callable[[], None], on_failure: Callable[[SettingsError], None]
    ) -> None:
        """As `run`, but pass the error that ends it to `on_failure`."""
        try:
            await self.run(on_ready)
        except SettingsError as error:
            on_failure(error)
        except Exception:
            logger.exception("the engine failed with an unexpected error")
            on_failure(SettingsError("The engine failed.", exit_code=1))

    async def stop(self) -> None:
        """End the engine; safe at any time."""
        self._set_phase(Phase.STOPPED)
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.shield(engine.stop())

    async def _restart(self, engine: E) -> None:
        self._began_s = self.clock.now()
        self._set_phase(Phase.RESTARTING)
        self.on_lost()
        attempt = 0
        while True:
            if self.max_restarts is not None:
                self._count_restart(engine, self.max_restarts)
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
            attempt += 1
            try:
                with self._mark_launching():
                    last = self.max_restarts is not None and len(self._restarts) >= self.max_restarts > 0
                    recovery = await engine.restart(last=last)
            except SettingsError:
                self._set_phase(Phase.FAILED)
                engine.fail_all()
                raise
            except Exception:
                logger.exception("the engine could not be started again")
                continue
            break
        self._start_took_s = self.clock.now() - self._began_s
        self._set_phase(Phase.UP)
        self.on_recovered(recovery)
        if self.max_restarts is not None:
            logger.warning(
                "the engine is back after %.1f s: %d requests go on%s",
                self._start_took_s,
                recovery.continued,
                "".join(f", {count} could not ({reason})" for reason, count in recovery.failed.items()),
            )

    @contextmanager
    def _mark_launching(self) -> Iterator[None]:
        """To be entered around the wait for an engine. The thread that builds it goes on when the wait is cancelled."""
        self.is_launching = True
        try:
            yield
        except asyncio.CancelledError:
            raise
        except BaseException:
            self.is_launching = False
            raise
        self.is_launching = False

    def _count_restart(self, engine: E, most: int) -> None:
        """Count one more restart. Raises SettingsError if that is one too many."""
        now_s = self.clock.now()
        for times in (self._restarts, self._explained_restarts):
            while times and now_s - times[0] > self.window_s:
                times.popleft()
        self._restarts.append(now_s)
        explained = engine.take_explained_deaths()
        if explained and len(self._explained_restarts) < most:
            # The request that it died of has failed, so the next engine will not die of it. An engine that dies of
            # every request is broken, so the number of excused deaths has a limit, too.
            self._explained_restarts.append(now_s)
            for _ in range(min(explained, len(self._restarts))):
                self._restarts.pop()
        if len(self._restarts) > most:
            self._set_phase(Phase.FAILED)
            engine.fail_all()
            raise SettingsError(
                f"The engine died, after {most} restarts within {self.window_s:g} s "
                "(supervisor.max_restarts, supervisor.window_s); see its last log lines above.",
                exit_code=1,
            )
        logger.warning("the engine died; starting it again (%d of %d)", len(self._restarts), most)

    def _set_phase(self, phase: Phase) -> None:
        self.phase = phase
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
