"""The end of the process, which no thread and no child can delay, and the last line of the log."""

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

# After the first signal, the time from the end of the drain to the exit: connections, engine, interpreter.
EXIT_WITHIN_S = 20.0
# After the second signal. A little longer than the engine process has to end.
FORCED_EXIT_WITHIN_S = 8.0
# At the very end, the interpreter waits this long for busy threads.
THREADS_WITHIN_S = 5.0
# Threads that compute for a request stop at their next checkpoint. A thread inside a library's native code does not,
# and would abort the process at the interpreter's end.
THREADS_STOP_WITHIN_S = 0.5


class LoopThreads(ThreadPoolExecutor):
    """The event loop's default executor, whose shutdown does not wait for running work."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def force_exit_after(within_s: float, code: int, *, silent: bool = False) -> None:
    """End the process with that code if it still runs after that time.

    The interpreter's own exit joins threads, which may compute for minutes for a request that has ended.
    """
    timer = threading.Timer(within_s, _force, (code, silent))
    timer.daemon = True
    timer.start()


def _force(code: int, silent: bool) -> None:
    if not silent:
        # Not through the log, because the blocked thread may hold its lock.
        with contextlib.suppress(OSError):
            os.write(2, b"sluice: a thread delays the exit; the process ends without waiting for it\n")
    kill_process(code)


def kill_process(code: int) -> None:
    """End this process and its children at once."""
    with contextlib.suppress(Exception):
        kill_below(os.getpid())
    os._exit(code)


def exit_process(code: int, *, hurry: bool) -> int:
    """Prepare the process's end and return its exit code. With `hurry` the process ends here: a thread is building an
    engine and would delay the interpreter's exit until it is done."""
    if hurry or not offload.stop_all(THREADS_STOP_WITHIN_S):
        logging.shutdown()
        sys.stderr.flush()
        kill_process(code)
    # Silent, because the last log line has been written.
    force_exit_after(THREADS_WITHIN_S, code, silent=True)
    return code


def log_end(reason: str, code: int, endings: Mapping[Cause, int], uptime_s: float) -> None:
    """Log the last line: the reason of the end, and counts of how requests have ended."""
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
