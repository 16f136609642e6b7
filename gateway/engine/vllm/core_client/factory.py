"""vLLM's client of another engine, for an AsyncLLM that has lost its own, or of engine processes of a parent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.engine.shared import EngineHost
from gateway.engine.vllm.compat.imports import cli_args
from gateway.engine.vllm.core_client.remote_engines import bounded_wait
from gateway.engine.vllm.daemon_threads import run_in_daemon_thread
from gateway.errors import EngineFailed


class EngineAttachment:
    """Makes this process, a worker, a client of engine processes that a parent has started: of the next engine. To be
    made in the event loop; used in the thread that starts, too.

    vLLM's own server uses the same mechanism for `--api-server-count`. Each worker has a client of its own of the
    processes, with its own sockets and number.
    """

    def __init__(self, engine_host: EngineHost) -> None:
        self._engine_host = engine_host
        self._loop = asyncio.get_running_loop()

    @property
    def front_end(self) -> tuple[int, int]:
        """The number of processes of the front end, and the index of this one."""
        return self._engine_host.client_count, self._engine_host.client_index

    def client_arguments(self) -> dict[str, Any]:
        """The further arguments of vLLM's client. Blocks until there is an engine."""
        return asyncio.run_coroutine_threadsafe(self._client_arguments(), self._loop).result()

    async def _client_arguments(self) -> dict[str, Any]:
        return {
            "client_addresses": dict(await self._engine_host.next_addresses()),
            "client_count": self._engine_host.client_count,
            "client_index": self._engine_host.client_index,
        }

    async def attach(self, make: Callable[[dict[str, Any]], Awaitable[Any]]) -> Any:
        """Await `make` with those arguments. Raises EngineFailed if the engine dies meanwhile: vLLM's constructor would
        go on waiting for it, for ten minutes in a thread that cannot be stopped."""
        made = asyncio.ensure_future(make(await self._client_arguments()))
        lost = asyncio.ensure_future(self._engine_host.wait_lost())
        try:
            await asyncio.wait((made, lost), return_when=asyncio.FIRST_COMPLETED)
            if not made.done():
                raise EngineFailed("The engine died before it could be used.")
            if made.exception() is not None:
                # The engine may be well, but not with this client, and there is no other that could be made for it.
                self._engine_host.report_unresponsive()
            return made.result()
        finally:
            made.cancel()
            lost.cancel()


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
