"""Watches the engine until it has died, or has to be replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gateway.clock import Clock
from gateway.engine.os_processes import usage
from gateway.engine.vllm.core_client.probe import Probe
from gateway.engine.vllm.core_client.restartable import RestartableCoreClient
from gateway.engine.watchdog import Observation, Watchdog

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class HangTimeouts:
    """How long an engine may leave a probe unanswered while it does not compute, and while it does."""

    hang_timeout_s: float
    long_step_timeout_s: float


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
