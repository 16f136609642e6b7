"""Engine processes with several clients: vLLM's own mechanism, and what does not go with it.

vLLM's server uses it for `--api-server-count`. The processes are started by a parent that serves nobody (`cores`), and
each of its workers has a client of them (`tenant`), with sockets and a number of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.engine.shared import EngineHost
from gateway.engine.vllm import engine_process
from gateway.errors import EngineFailed, SettingsError

# Of vLLM's variables, those that make it keep in one process what the next request, in another one, would need.
_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "an adapter loaded through one worker would be unknown to the others",
    "VLLM_ENABLE_RESPONSES_API_STORE": "a stored response is known to one worker only",
}


def refuse_for_workers(args: Any) -> None:
    """Raises SettingsError for what does not hold with more than one worker; `args` as parsed by vLLM."""
    size = args.data_parallel_size
    local = args.data_parallel_size_local
    wrong = {
        "data_parallel_backend=ray": args.data_parallel_backend == "ray",
        "data_parallel_size_local": local is not None and local != size,
        "data_parallel_rank": args.data_parallel_rank is not None,
        "data_parallel_external_lb": args.data_parallel_external_lb,
        "data_parallel_hybrid_lb": args.data_parallel_hybrid_lb,
        "enable_elastic_ep": getattr(args, "enable_elastic_ep", False),
    }
    for name, found in wrong.items():
        if found:
            raise SettingsError(
                f"engine.{name} does not go with server.workers: the workers watch engine processes of this machine "
                "only. Set server.workers to 1."
            )
    if getattr(args, "mm_tensor_ipc", None) == "torch_shm":
        raise SettingsError(
            "engine.mm_tensor_ipc=torch_shm does not go with server.workers: its queue ends with the first engine "
            "process. Set server.workers to 1, or leave it out."
        )
    if getattr(args, "enable_server_load_tracking", False):
        raise SettingsError(
            "engine.enable_server_load_tracking does not go with server.workers: /load would tell one worker's share. "
            "Leave it out and read sluice_streams_active at /metrics, or set server.workers to 1."
        )
    for name, reason in _ENVIRONMENT.items():
        if os.environ.get(name, "0").lower() in ("1", "true"):
            raise SettingsError(
                f"{name} does not go with server.workers: {reason}. Unset it or set server.workers to 1."
            )


class EngineAttachment:
    """How a worker becomes a client of the next engine. Made in the event loop, used in the thread that starts."""

    def __init__(self, engine_host: EngineHost) -> None:
        self._engine_host = engine_host
        self._loop = asyncio.get_running_loop()
        # What this process starts is no engine.
        os.environ.pop(engine_process.VARIABLE, None)

    def set_process_count(self, engine_args: Any) -> None:
        """Tell vLLM that the front end is several processes: caches that they cannot share are then left out."""
        engine_args._api_process_count = self._engine_host.client_count
        engine_args._api_process_rank = self._engine_host.client_index

    def client_arguments(self) -> dict[str, Any]:
        """The further arguments of vLLM's client; waits until there is an engine."""
        return asyncio.run_coroutine_threadsafe(self._client_arguments(), self._loop).result()

    async def _client_arguments(self) -> dict[str, Any]:
        return {
            "client_addresses": dict(await self._engine_host.next_addresses()),
            "client_count": self._engine_host.client_count,
            "client_index": self._engine_host.client_index,
        }

    async def attach(self, make: Callable[[dict[str, Any]], Awaitable[Any]]) -> Any:
        """What `make` makes of those arguments. Raises EngineFailed if the engine dies meanwhile: vLLM's constructor
        would go on to wait for it, for ten minutes in a thread that cannot be stopped."""
        made = asyncio.ensure_future(make(await self._client_arguments()))
        lost = asyncio.ensure_future(self._engine_host.wait_lost())
        try:
            await asyncio.wait((made, lost), return_when=asyncio.FIRST_COMPLETED)
            if not made.done():
                raise EngineFailed("The engine died before it could be used.")
            if made.exception() is not None:
                # It may be well, but not with us, and there is no other client that we could make for it.
                self._engine_host.report_unresponsive()
            return made.result()
        finally:
            made.cancel()
            lost.cancel()


__all__ = ["EngineAttachment", "refuse_for_workers"]
