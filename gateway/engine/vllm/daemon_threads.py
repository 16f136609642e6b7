"""vLLM's threads in this process, none of which the interpreter waits for at its exit.

To be adopted before an engine is built: its renderer makes its threads, and the copies of its tokenizer that they use,
when it is made.
"""

from __future__ import annotations

from typing import Any

from gateway.offload import DaemonExecutor

RENDER_THREADS = 2
"""Threads of ours that use the renderer's tokenizer, besides vLLM's own and the event loop."""


def install() -> None:
    """Replace the executors of vLLM's renderers and of its loader of media, once."""
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


__all__ = ["RENDER_THREADS", "install"]
