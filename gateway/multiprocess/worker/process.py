"""The process of one worker: the server of one process, which the parent's messages end instead of signals."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway import app, logs, server, shutdown
from gateway.engine_plan import plan_engine
from gateway.errors import SettingsError
from gateway.multiprocess.messages import Drain, Shutdown, ShutdownNow, WorkerClosed, WorkerDrained, WorkerFailed
from gateway.multiprocess.worker.context import WorkerContext
from gateway.settings import Settings

logger = logging.getLogger("sluice")

# When the parent process has died, streams have this long to send their last event.
_EXIT_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of the command line besides settings: the model, vLLM's flags, the settings file."""

    model: str | None
    flags: tuple[str, ...]
    file: Path | None


class WorkerServer(server.ServerProcess):
    """Listens for the other workers, too."""

    context: WorkerContext

    def capture_signals(self) -> Any:
        # The terminal's signals go to the whole process group; the parent handles them and sends messages.
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._drain_task: asyncio.Task[None] | None = None
        self.context.on_shutdown = self._handle
        await self.context.open(self._on_parent_lost)
        await super().startup(sockets)
        await self.add_listener(self.context.peer_app, self.context.socket_path(self.context.number))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        endings = {cause.value: count for cause, count in self.sluice.metrics.endings.items()}
        self.context.send(WorkerClosed(endings))

    def _handle(self, message: Drain | Shutdown | ShutdownNow) -> None:
        match message:
            case Drain(timeout_s):
                self.drain_timeout_s = timeout_s
                self._drain_task = asyncio.get_running_loop().create_task(self._drain())
            case Shutdown():
                self.should_exit = True
            case ShutdownNow():
                self.end_now()

    async def _drain(self) -> None:
        # This process stays until all workers have drained, because they forward requests about its streams.
        await self.sluice.registry.drain(self.drain_timeout_s)
        self.context.send(WorkerDrained())

    def _on_parent_lost(self) -> None:
        # The parent process would have removed it.
        shutil.rmtree(self.context.folder, ignore_errors=True)
        if not self.should_exit:
            self.end_now()
        asyncio.get_running_loop().call_later(_EXIT_WITHIN_S, os._exit, 1)


def main(
    settings: Settings,
    options: ServeOptions,
    place: tuple[int, int, socket.socket, Path],
    sock: socket.socket,
    management: socket.socket | None,
) -> None:
    """The target of the process. `place` are the arguments of `WorkerContext`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    logs.configure(**dict(settings.log))
    context = WorkerContext(*place)
    is_ready = False
    plan = plan_engine(settings, options.model, options.flags, options.file, lambda _: None)

    def build(on_ready: Any, on_failure: Any) -> app.Sluice:
        def fail(error: SettingsError) -> None:
            context.send(WorkerFailed(str(error), error.exit_code))
            on_failure(error)

        sluice = app.Sluice.build(settings, plan, on_ready=on_ready, on_failure=fail, context=context)
        # Each worker counts as one in the sum of their metrics.
        sluice.metrics.add_gauge("workers", "Processes that serve together.", lambda: 1)
        return sluice

    def make_server(config: Any) -> WorkerServer:
        made = WorkerServer(config)
        made.context = context
        return made

    def on_ready(_: app.Sluice) -> None:
        nonlocal is_ready
        is_ready = True

    try:
        _, failure = server.run(settings, build, on_ready, sock, management, make_server)
    except SettingsError as error:
        failure = error
        logger.error("%s", error)
    # Before that, a thread may be building the engine, and the interpreter's exit would wait for it.
    raise SystemExit(shutdown.exit_process(0 if failure is None else failure.exit_code, hurry=not is_ready))
