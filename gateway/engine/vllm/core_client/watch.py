"""Watches the engine until it has died, or has to be replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.clock import Clock
from gateway.engine.os_processes import usage
from gateway.engine.watchdog import Observation, Watchdog

if TYPE_CHECKING:
    from gateway.engine.vllm.core_client.restartable import RestartableCoreClient

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
# A question costs the engine about as much as one token.
_ASK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class HangTimeouts:
    """How long an engine may leave a probe unanswered while it does not compute, and while it does."""

    hang_timeout_s: float
    long_step_timeout_s: float


class Probe:
    """Sends the engine a small question about once a second, on the way that requests take: through the client's socket
    to the engine's busy loop, and back with its outputs. At most one question is unanswered at a time."""

    def __init__(self, ask: Callable[[], Awaitable[bool]], now_s: float) -> None:
        """`ask` sends the question and returns the answer: whether an operator has paused the engine."""
        self._ask = ask
        self._sent_s = now_s - _ASK_EVERY_S
        self._task: asyncio.Task[bool] | None = None
        self.is_paused = False
        """The newest answer."""

    def step(self, now_s: float) -> float | None:
        """Take an answer that has come, and send the question if it is time to. Returns when the unanswered question
        was sent, None if there is none."""
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            # Errors are reported elsewhere; the question to a dead engine is sent again.
            with suppress(Exception, asyncio.CancelledError):
                self.is_paused = task.result()
        if self._task is None and now_s - self._sent_s >= _ASK_EVERY_S:
            self._sent_s = now_s
            self._task = asyncio.ensure_future(self._ask())
        return None if self._task is None else self._sent_s

    def close(self) -> None:
        """Stop waiting for an answer."""
        if self._task is not None:
            self._task.cancel()


async def wait_dead(
    core: RestartableCoreClient, clock: Clock, timeouts: HangTimeouts, report: Callable[[str | None], None]
) -> None:
    """Return when the engine has died; one that hangs is ended. `report` gets about twice a second the reason why a
    request sent now would not be served soon, None if it would."""
    watchdog = Watchdog(
        hang_timeout_s=timeouts.hang_timeout_s,
        long_step_timeout_s=timeouts.long_step_timeout_s,
        usage=lambda: usage(core.pids),
        now_s=clock.now(),
    )
    probe = Probe(core.is_paused, clock.now())
    was_ready = True
    try:
        while not core.lost.is_set():
            # vLLM's output handler notices most deaths at once; this notices those between two requests.
            with suppress(TimeoutError):
                await asyncio.wait_for(core.lost.wait(), _LOOK_EVERY_S)
            if core.has_died():
                core.mark_lost()
            unanswered_since_s = probe.step(clock.now())
            seen = Observation(unanswered_since_s, core.last_output_s, core.has_backlog())
            assessment = watchdog.assess(clock.now(), seen)
            hang = assessment.unready_reason
            if hang and core.engine_count > 1:
                hang += f" (data-parallel engine {core.silent_engine})"
            reason = hang or ("the engine is paused" if probe.is_paused else None)
            if was_ready != (reason is None):
                was_ready = reason is None
                logger.warning("ready again: the engine answers" if was_ready else f"not ready: {reason}")
            if assessment.is_dead and not core.lost.is_set():
                logger.error("%s; it is ended", hang)
                core.kill()
                core.mark_lost()
            report(reason)
    finally:
        probe.close()
    await core.find_culprit()
