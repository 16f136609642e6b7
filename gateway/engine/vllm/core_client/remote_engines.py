"""Engines of other machines that a start waits for: named in the log, and not waited for without end.

vLLM waits for them in a loop that says so on its debug level only and has no limit; what it says there is read here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway.clock import SystemClock
from gateway.errors import SettingsError

logger = logging.getLogger("sluice")

# vLLM says every 10 s what it waits for.
_SPEAKER = "vllm.v1.engine.utils"
_WORDS = "Waiting for %d local, %d remote core engine proc(s) to "
_SAY_EVERY_S = 30.0


class RemoteEngineWait(logging.Filter):
    """Reads what vLLM says while it waits. Raises SettingsError in the thread that waits when that takes too long."""

    def __init__(self, where: str, timeout_s: float, level: int) -> None:
        """`where` engines of other machines are to come; records below `level` go no further."""
        super().__init__()
        self._clock = SystemClock()
        self._where = where
        self._timeout_s = timeout_s
        self._level = level
        self._began_s = self._clock.now()
        self._said_s = self._began_s

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str) and record.msg.startswith(_WORDS) and isinstance(record.args, tuple):
            self._wait(int(str(record.args[1])), record.msg.removeprefix(_WORDS).rstrip("."))
        return record.levelno >= self._level

    def _wait(self, remote: int, what: str) -> None:
        now_s = self._clock.now()
        if not remote:
            self._began_s = now_s
            return
        waited_s = now_s - self._began_s
        engines = f"{remote} engine{'s' if remote > 1 else ''} on other machines"
        if waited_s > self._timeout_s:
            raise SettingsError(
                f"The engine could not start: {engines} did not {what} ({self._where}) within {waited_s:.0f} s. Start "
                "them there with `sluice engine` and the same arguments. The limit is VLLM_ENGINE_READY_TIMEOUT_S.",
                exit_code=1,
            )
        if now_s - self._said_s >= _SAY_EVERY_S:
            self._said_s = now_s
            logger.warning("%.0f s: waiting for %s to %s (%s)", waited_s, engines, what, self._where)


@contextmanager
def bounded_wait(config: Any) -> Iterator[None]:
    """Around the start of the engines of this configuration of vLLM's."""
    parallel = config.parallel_config
    if parallel.data_parallel_size_local in (None, parallel.data_parallel_size):
        yield
        return
    from vllm import envs

    speaker = logging.getLogger(_SPEAKER)
    where = f"{parallel.data_parallel_master_ip}:{parallel.data_parallel_rpc_port}"
    missing = RemoteEngineWait(where, envs.VLLM_ENGINE_READY_TIMEOUT_S, speaker.getEffectiveLevel())
    level = speaker.level
    speaker.addFilter(missing)
    speaker.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        speaker.setLevel(level)
        speaker.removeFilter(missing)


__all__ = ["RemoteEngineWait", "bounded_wait"]
