"""How a worker becomes a client of engine processes that a parent has started.

vLLM's own server uses the same mechanism for `--api-server-count`. Each worker has a client of its own of the
processes, with its own sockets and number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.engine.shared import EngineHost
from gateway.errors import EngineFailed


class EngineAttachment:
    """Attaches to the next engine. To be made in the event loop; used in the thread that starts, too."""

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
