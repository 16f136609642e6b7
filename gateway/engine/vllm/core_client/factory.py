"""vLLM's client of another engine, for an AsyncLLM that has lost its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.engine.vllm.compat.imports import cli_args
from gateway.engine.vllm.core_client.attachment import EngineAttachment
from gateway.engine.vllm.core_client.remote_engines import bounded_wait
from gateway.engine.vllm.daemon_threads import run_in_daemon_thread


def make_config(args: Any, front_end: tuple[int, int] | None = None) -> Any:
    """vLLM's configuration. Each start needs a new one, because it writes into it (block counts are added up, ports
    taken out). `front_end`: the number of processes of the front end and the index of this one, -1 if it is none of
    them; vLLM then leaves out caches that they cannot share."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    engine_args = AsyncEngineArgs.from_cli_args(args)
    cli_args().propagate_flash_late_interaction(args, engine_args)
    if front_end is not None:
        engine_args._api_process_count, engine_args._api_process_rank = front_end
    return engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


async def make_core_client(args: Any, llm: Any, attachment: EngineAttachment | None) -> Any:
    """A client of another engine, which is started, or is the next one of a parent."""
    if attachment is None:
        return await run_in_daemon_thread(lambda: _make_core_client(args, llm, None, {}))
    front_end = attachment.front_end
    return await attachment.attach(
        lambda client: run_in_daemon_thread(lambda: _make_core_client(args, llm, front_end, client))
    )


def _make_core_client(args: Any, llm: Any, front_end: tuple[int, int] | None, client: Mapping[str, Any]) -> Any:
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.executor import Executor

    config = make_config(args, front_end)
    with bounded_wait(config):
        return EngineCoreClient.make_async_mp_client(config, Executor.get_class(config), llm.log_stats, **client)
