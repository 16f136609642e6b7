from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from gateway.engine.vllm.daemon_threads import run_in_daemon_thread
from tests.support.time import in_real_time


@in_real_time
async def test_work_runs_in_a_daemon_thread_with_interrupts_blocked() -> None:
    def work() -> tuple[bool, bool]:
        return threading.current_thread().daemon, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    assert await run_in_daemon_thread(work) == (True, True)


@in_real_time
async def test_its_error_is_raised_to_the_caller() -> None:
    def work() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await run_in_daemon_thread(work)


@in_real_time
async def test_each_call_has_a_thread_of_its_own_which_ends() -> None:
    """A start that hangs must not hold up the next one."""
    release = threading.Event()
    first = asyncio.ensure_future(run_in_daemon_thread(release.wait))
    thread = await run_in_daemon_thread(threading.current_thread)
    release.set()
    await first
    await asyncio.to_thread(thread.join, 5)

    assert not thread.is_alive()
