"""uvicorn as Sluice uses it: configuration, several listeners with apps of their own, and a check of all connections
once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from pathlib import Path
from typing import Any, Literal

import uvicorn

from gateway import memory
from gateway.transports.common.tls import Certificates
from gateway.transports.http.connection import HttpConnection
from gateway.transports.http.request_limits import body_budget

# After request bodies have held this much memory at once, free memory is returned to the system.
LARGE_PEAK_BYTES = 64 * 2**20
# At shutdown, connections have this long to take the bytes that were sent last.
FLUSH_WITHIN_S = 2


class UvicornServer(uvicorn.Server):
    """Serves the configured app on the given sockets, and further apps on further ones. Handles no signals."""

    certificates: Certificates | None = None
    """Of the configured app's listeners; the others have no TLS."""
    management: tuple[Any, socket.socket] | None = None
    """The app of the management port, and its listening socket."""
    _certificates_task: asyncio.Task[None] | None = None
    _memory_task: asyncio.Task[None] | None = None

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(1)
        self.servers = []
        for sock in sockets or []:
            await self._listen(self.config, sock, self.certificates)
        if self.management is not None:
            await self.add_listener(*self.management)
        self.started = True

    async def add_listener(self, app: Any, place: socket.socket | Path) -> None:
        """Serve `app` on a listening socket, or on a new Unix socket at a path."""
        config = make_config(app, lifespan="off")
        config.load()
        await self._listen(config, place)

    async def _listen(
        self, config: uvicorn.Config, place: socket.socket | Path, certificates: Certificates | None = None
    ) -> None:
        make = partial(HttpConnection, config, self.server_state, self.lifespan.state)
        loop = asyncio.get_running_loop()
        if isinstance(place, Path):
            self.servers.append(await loop.create_unix_server(make, place))
            return
        create = loop.create_unix_server if place.family == socket.AF_UNIX else loop.create_server
        options: dict[str, Any] = {}
        if certificates is not None:
            # An incomplete TLS handshake has the same time limit as incomplete headers.
            options = {"ssl": certificates.context, "ssl_handshake_timeout": HttpConnection.header_timeout_s}
            options["ssl_shutdown_timeout"] = FLUSH_WITHIN_S
        self.servers.append(await create(make, sock=place, backlog=config.backlog, **options))

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpConnection):
                    connection.check_peer()
            self._release_memory()
            if self.certificates is not None and (self._certificates_task is None or self._certificates_task.done()):
                self._certificates_task = asyncio.ensure_future(asyncio.to_thread(self.certificates.refresh))
        return await super().on_tick(counter)

    def _release_memory(self) -> None:
        budget = body_budget(self.server_state)
        if budget is not None and budget.peak_bytes > LARGE_PEAK_BYTES and budget.used_bytes < budget.peak_bytes // 2:
            budget.reset_peak()
            self._memory_task = asyncio.ensure_future(asyncio.to_thread(memory.release_free))

    def unsent_bytes(self) -> int:
        """Bytes in the write buffers of all connections."""
        return sum(one.unsent_bytes for one in self.server_state.connections if isinstance(one, HttpConnection))


def make_config(app: Any, *, lifespan: Literal["on", "off"] = "on") -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HttpConnection,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=FLUSH_WITHIN_S,
    )
