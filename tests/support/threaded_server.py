"""The server's own process code around a small app, in a thread: real sockets, no engine."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import uvloop

from gateway.transports.common.tls import Certificates
from gateway.transports.http.uvicorn_server import UvicornServer, make_config


class ThreadedServer:
    """Serves `app` on `sock`, and `management` on a socket of its own, until it is left."""

    def __init__(
        self,
        app: Any,
        sock: socket.socket,
        *,
        certificates: Certificates | None = None,
        management: tuple[Any, socket.socket] | None = None,
    ) -> None:
        self.server = UvicornServer(make_config(app, lifespan="off"))
        self.server.certificates = certificates
        self.server.management = management
        self.address: Any = sock.getsockname()
        self._sock = sock
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        async def serve() -> None:
            asyncio.get_running_loop().call_later(0.05, self._began.set)
            await self.server.serve(sockets=[self._sock])

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    def __enter__(self) -> ThreadedServer:
        self._thread.start()
        assert self._began.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


__all__ = ["ThreadedServer"]
