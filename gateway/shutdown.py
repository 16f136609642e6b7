"""The end of the process, which no thread and no child can hold up, and the line that the log closes with."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gateway import offload
from gateway.domain import Cause
from gateway.engine.os_processes import kill_below

logger = logging.getLogger("sluice")

# Asked once, the process has so long from the end of the drain: connections, engine, interpreter.
EXIT_WITHIN_S = 20.0
# Asked twice: a little longer than the engine process gets to end.
FORCED_EXIT_WITHIN_S = 8.0
# When all is done, threads that are still busy are waited for so long.
THREADS_WITHIN_S = 5.0
# Threads that compute for a request stop at the next point where they look whether somebody waits for it; one that is
# in the middle of a library's own code does not, and would abort the process at the interpreter's end.
THREADS_STOP_WITHIN_S = 0.5


class LoopThreads(ThreadPoolExecutor):
    """The event loop's threads. Its end does not wait for what they do."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As the base class's, without the wait."""
        super().shutdown(wait=False, cancel_futures=True)


def force_exit_after(within_s: float, code: int, *, silent: bool = False) -> None:
    """End the process with that code if it still lives after so long, whatever its threads do.

    The interpreter's own exit joins threads that may compute for minutes for a request that nobody waits for.
    """
    timer = threading.Timer(within_s, _force, (code, silent))
    timer.daemon = True
    timer.start()


def _force(code: int, silent: bool) -> None:
    if not silent:
        # Not through the log: its lock may be held by whoever holds up the exit.
        with contextlib.suppress(OSError):
            os.write(2, b"sluice: something holds up the exit; the process ends without it\n")
    kill_process(code)


def kill_process(code: int) -> None:
    """End this process and its children without another word."""
    with contextlib.suppress(Exception):
        kill_below(os.getpid())
    os._exit(code)


def exit_process(code: int, *, hurry: bool) -> int:
    """The exit code, with which the process will end soon. `hurry`: a thread is in the middle of building an engine and
    would hold the interpreter's exit for as long as that takes."""
    if hurry or not offload.stop_all(THREADS_STOP_WITHIN_S):
        logging.shutdown()
        sys.stderr.flush()
        kill_process(code)
    # Everything has been said.
    force_exit_after(THREADS_WITHIN_S, code, silent=True)
    return code


def log_end(reason: str, code: int, endings: Mapping[Cause, int], uptime_s: float) -> None:
    """Log the closing line: why the process ends, and what became of the requests that it took."""
    cut = endings.get(Cause.SERVER_DRAINING, 0)
    completed = endings.get(Cause.COMPLETED, 0)
    fields: dict[str, Any] = {
        "exit_code": code,
        "completed": completed,
        "cut_off": cut,
        "ended_otherwise": sum(endings.values()) - completed - cut,
        "uptime_s": round(uptime_s, 1),
    }
    logger.info("stopped: %s", reason, extra={"fields": fields})


__all__ = [
    "EXIT_WITHIN_S",
    "FORCED_EXIT_WITHIN_S",
    "LoopThreads",
    "exit_process",
    "force_exit_after",
    "kill_process",
    "log_end",
]
