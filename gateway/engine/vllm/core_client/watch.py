"""Watches the engine until it has died, or has to be replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from gateway.clock import Clock
from gateway.engine.os_processes import usage
from gateway.engine.vllm.core_client.probe import Probe
from gateway.engine.vllm.core_client.restartable import LastingCore
from gateway.engine.watchdog import Seen, Watchdog

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long a question may be unanswered: by an engine that does not compute, and by one that does."""

    hang_timeout_s: float
    long_step_timeout_s: float


async def until_dead(core: LastingCore, clock: Clock, patience: Patience, look: Callable[[str | None], None]) -> None:
    """Return when there is no engine any more; one that is hung is ended. `look` is told about twice a second why a
    request sent now would not be served soon, None if it would."""
    watchdog = Watchdog(
        hang_timeout_s=patience.hang_timeout_s,
        long_step_timeout_s=patience.long_step_timeout_s,
        usage=lambda: usage(core.pids),
        now_s=clock.now(),
    )
    probe = Probe(core.is_paused, clock.now())
    was_well = True
    try:
        while not core.lost.is_set():
            # vLLM's output handler notices most deaths at once; this notices those between two requests.
            with suppress(TimeoutError):
                await asyncio.wait_for(core.lost.wait(), _LOOK_EVERY_S)
            if core.process_died():
                core.mark_lost()
            asked_s = probe.step(clock.now())
            verdict = watchdog.look(clock.now(), Seen(asked_s, core.heard_s, core.behind()))
            if verdict.trouble and core.engines > 1:
                verdict = replace(verdict, trouble=f"{verdict.trouble} (data-parallel engine {core.silent_engine})")
            trouble = verdict.trouble or ("the engine is paused" if probe.is_paused else None)
            if was_well != (trouble is None):
                was_well = trouble is None
                logger.warning("ready again: the engine answers" if was_well else f"not ready: {trouble}")
            if verdict.is_dead and not core.lost.is_set():
                logger.error("%s; it is ended", verdict.trouble)
                core.kill()
                core.mark_lost()
            look(trouble)
    finally:
        probe.close()
    await core.judge()


__all__ = ["Patience", "until_dead"]
