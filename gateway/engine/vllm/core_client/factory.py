"""vLLM's client of another engine, for an AsyncLLM that has lost its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.engine.vllm.compat.imports import cli_args
from gateway.engine.vllm.core_client.attachment import EngineAttachment
from gateway.engine.vllm.core_client.remote_engines import bounded_wait
from gateway.engine.vllm.daemon_threads import run_in_daemon_thread


def make_config(args: Any, change: Callable[[Any], None] | None = None) -> Any:
    """vLLM's configuration. Each start needs a new one, because it writes into it (block counts are added up, ports
    taken out). `change` may write into the arguments before."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    engine_args = AsyncEngineArgs.from_cli_args(args)
    cli_args().propagate_flash_late_interaction(args, engine_args)
    if change is not None:
        change(engine_args)
    return engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


async def make_core_client(args: Any, llm: Any, attachment: EngineAttachment | None) -> Any:
    """A client of another engine, which is started, or is the next one of a parent."""
    if attachment is None:
        return await run_in_daemon_thread(lambda: _make_core_client(args, llm, None, {}))
    change = attachment.set_process_count
    return await attachment.attach(
        lambda client: run_in_daemon_thread(lambda: _make_core_client(args, llm, change, client))
    )


def _make_core_client(args: Any, llm: Any, change: Callable[[Any], None] | None, client: Mapping[str, Any]) -> Any:
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.executor import Executor

    config = make_config(args, change)
    with bounded_wait(config):
        return EngineCoreClient.make_async_mp_client(config, Executor.get_class(config), llm.log_stats, **client)
