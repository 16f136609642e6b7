"""Another engine for an AsyncLLM that has lost its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.engine.vllm.compat.imports import find
from gateway.engine.vllm.core_client.attachment import EngineAttachment
from gateway.engine.vllm.core_client.remote_engines import bounded_wait

RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs what blocks in a thread that does not keep the process alive."""


def make_config(args: Any, mark: Callable[[Any], None] | None = None) -> Any:
    """vLLM's configuration. One for each start: starting an engine writes into it (block counts are added up, ports
    taken out). `mark` may write into the arguments before."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    engine_args = AsyncEngineArgs.from_cli_args(args)
    find("propagate_flash_late_interaction")(args, engine_args)
    if mark is not None:
        mark(engine_args)
    return engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


async def make_core_client(args: Any, llm: Any, joining: EngineAttachment | None, in_daemon: RunInThread) -> Any:
    """vLLM's client of another engine for a running AsyncLLM: one that is started, or one that is met."""
    if joining is None:
        return await in_daemon(lambda: _make_core_client(args, llm))
    mark = joining.set_process_count
    return await joining.attach(lambda client: in_daemon(lambda: _make_core_client(args, llm, mark, client)))


def _make_core_client(
    args: Any, llm: Any, mark: Callable[[Any], None] | None = None, client: Mapping[str, Any] | None = None
) -> Any:
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.executor import Executor

    config = make_config(args, mark)
    with bounded_wait(config):
        return EngineCoreClient.make_async_mp_client(
            config, Executor.get_class(config), llm.log_stats, **(client or {})
        )


__all__ = ["make_config", "make_core_client"]
