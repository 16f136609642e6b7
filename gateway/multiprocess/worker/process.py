"""The process of one worker: the server of one process, which takes its orders from the house instead of signals."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gateway import app, logs, server, shutdown
from gateway.errors import SettingsError
from gateway.multiprocess.messages import Drain, Shutdown, ShutdownNow
from gateway.multiprocess.worker.context import WorkerContext
from gateway.settings import Settings
from gateway.transports.http.connection import HttpConnection

logger = logging.getLogger("sluice")

# Without the house there is nobody to serve for; streams get so long to hear of it.
_GONE_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line asked for besides settings: the model, vLLM's flags, the settings file."""

    model: str | None
    flags: tuple[str, ...]
    file: Path | None


class WorkerServer(server.HttpServer):
    """Obeys the house, and listens for the other workers, too."""

    context: WorkerContext

    def capture_signals(self) -> Any:
        # Those of the terminal go to the whole group; the house gets them, and says what is to be done.
        return _nothing

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._draining: asyncio.Task[None] | None = None
        self.context.on_shutdown = self._handle
        await self.context.open(self._on_parent_lost)
        await super().startup(sockets)
        inner = server.configure(self.sluice.inner, lifespan="off")
        inner.load()
        make = partial(HttpConnection, inner, self.server_state, self.lifespan.state)
        place = self.context.socket_path(self.context.number)
        self.servers.append(await asyncio.get_running_loop().create_unix_server(make, place))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.context.send_closed({cause.value: count for cause, count in self.sluice.metrics.endings.items()})

    def _handle(self, order: Drain | Shutdown | ShutdownNow) -> None:
        match order:
            case Drain(timeout_s):
                self.drain_timeout_s = timeout_s
                self._draining = asyncio.get_running_loop().create_task(self._drain())
            case Shutdown():
                self.should_exit = True
            case ShutdownNow():
                self.end_now()

    async def _drain(self) -> None:
        # What others drain may still be asked for here, so this process stays until all have.
        await self.sluice.drain(self.drain_timeout_s)
        self.context.send_drained()

    def _on_parent_lost(self) -> None:
        # Nobody else will.
        shutil.rmtree(self.context.folder, ignore_errors=True)
        if not self.should_exit:
            self.end_now()
        asyncio.get_running_loop().call_later(_GONE_WITHIN_S, os._exit, 1)


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


_nothing = _Nothing()


def main(
    settings: Settings,
    wanted: ServeOptions,
    seat: tuple[int, int, socket.socket, Path],
    sock: socket.socket,
    management: socket.socket | None,
) -> None:
    """The target of the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    log = settings.log
    logs.configure(log.level, log.as_json, requests=log.requests, quiet_paths=log.quiet_paths)
    place = WorkerContext(*seat)
    ready = False
    plan = app.plan_engine(settings, wanted.model, wanted.flags, wanted.file, lambda _: None)

    def build(on_ready: Any, on_failure: Any) -> app.Sluice:
        def fail(error: SettingsError) -> None:
            place.send_failed(str(error), error.exit_code)
            on_failure(error)

        return app.Sluice.build(settings, plan, on_ready=on_ready, on_failure=fail, seat=place)

    def make(config: Any) -> WorkerServer:
        one = WorkerServer(config)
        one.context = place
        return one

    def on_ready(sluice: app.Sluice) -> None:
        nonlocal ready
        ready = True
        place.send_ready(sluice.model, sluice.chats)

    try:
        _, failure = server.run(settings, build, on_ready, sock, management, make)
    except SettingsError as error:
        failure = error
        logger.error("%s", error)
    # A thread that waits for the engine may still be there, and would be waited for.
    raise SystemExit(shutdown.exit_process(0 if failure is None else failure.exit_code, hurry=not ready))


__all__ = ["ServeOptions", "WorkerServer", "main"]
