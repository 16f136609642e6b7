"""Threads in this process for which the interpreter does not wait at its exit: vLLM's, and the one that starts an
engine.

`install` is to be called before an engine is built, because its renderer then makes its threads, and the copies of its
tokenizer that they use.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from gateway.offload import DaemonExecutor

T = TypeVar("T")

RENDER_THREADS = 2
"""Threads of ours that use the renderer's tokenizer, besides vLLM's own and the event loop."""


def install() -> None:
    """Replace the executors of vLLM's renderers and of its media loader, once."""
    from vllm.multimodal.media import connector
    from vllm.renderers import base, hf

    if base.ThreadPoolExecutor is DaemonExecutor:
        return
    base.ThreadPoolExecutor = DaemonExecutor  # type: ignore[misc,unused-ignore]
    connector.global_thread_pool = DaemonExecutor(connector.global_thread_pool._max_workers, "sluice-media")
    make_pool = hf.maybe_make_thread_pool

    def make_larger_pool(tokenizer: Any, copies: int = 1) -> Any:
        # Where a thread finds no copy left it makes one, and a large vocabulary takes a second of the interpreter.
        return make_pool(tokenizer, copies + RENDER_THREADS)

    hf.maybe_make_thread_pool = make_larger_pool


async def run_in_daemon_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own: Ctrl-C during a start that takes minutes ends the process at once."""
    pool = DaemonExecutor(1, "sluice-engine-start")
    running = asyncio.get_running_loop().run_in_executor(pool, _run_without_interrupts, work)
    # The thread ends with its work.
    pool.shutdown()
    return await running


def _run_without_interrupts(work: Callable[[], T]) -> T:
    # The engine's processes inherit the block: Ctrl-C goes to every process of the terminal's group, and an engine that
    # obeys it cuts the streams that the gateway is still finishing. multiprocessing's resource tracker lifts the block
    # in the thread that starts it, so it is started before.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    return work()
