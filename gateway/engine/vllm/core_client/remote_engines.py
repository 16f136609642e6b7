"""Limits the wait for engines on other machines, and names them in the log.

vLLM waits for them in a loop without a limit, which it reports in its debug log only; that report is read here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway.clock import SystemClock
from gateway.errors import SettingsError

logger = logging.getLogger("sluice")

# vLLM logs every 10 s which engines it waits for.
_LOGGER = "vllm.v1.engine.utils"
_MESSAGE = "Waiting for %d local, %d remote core engine proc(s) to "
_LOG_EVERY_S = 30.0


class RemoteEngineWait(logging.Filter):
    """Reads vLLM's debug log while it waits. Raises SettingsError in the thread that waits when that takes too long."""

    def __init__(self, where: str, timeout_s: float, level: int) -> None:
        """`where`: the address to which the engines connect. Records below `level` are dropped."""
        super().__init__()
        self._clock = SystemClock()
        self._where = where
        self._timeout_s = timeout_s
        self._level = level
        self._began_s = self._clock.now()
        self._logged_s = self._began_s

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str) and record.msg.startswith(_MESSAGE) and isinstance(record.args, tuple):
            self._check(int(str(record.args[1])), record.msg.removeprefix(_MESSAGE).rstrip("."))
        return record.levelno >= self._level

    def _check(self, remote: int, action: str) -> None:
        now_s = self._clock.now()
        if not remote:
            self._began_s = now_s
            return
        waited_s = now_s - self._began_s
        engines = f"{remote} engine{'s' if remote > 1 else ''} on other machines"
        if waited_s > self._timeout_s:
            raise SettingsError(
                f"The engine could not start: {engines} did not {action} ({self._where}) within {waited_s:.0f} s. "
                "Start them there with `sluice engine` and the same arguments. The limit is "
                "VLLM_ENGINE_READY_TIMEOUT_S.",
                exit_code=1,
            )
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            logger.warning("%.0f s: waiting for %s to %s (%s)", waited_s, engines, action, self._where)


@contextmanager
def bounded_wait(config: Any) -> Iterator[None]:
    """To be entered around the start of the engines of this configuration of vLLM."""
    parallel = config.parallel_config
    if parallel.data_parallel_size_local in (None, parallel.data_parallel_size):
        yield
        return
    from vllm import envs

    vllm_logger = logging.getLogger(_LOGGER)
    where = f"{parallel.data_parallel_master_ip}:{parallel.data_parallel_rpc_port}"
    wait = RemoteEngineWait(where, envs.VLLM_ENGINE_READY_TIMEOUT_S, vllm_logger.getEffectiveLevel())
    level = vllm_logger.level
    vllm_logger.addFilter(wait)
    vllm_logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        vllm_logger.setLevel(level)
        vllm_logger.removeFilter(wait)
