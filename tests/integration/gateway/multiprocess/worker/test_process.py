"""The server of a worker, with an app that does nothing, and the parent's end of its channel."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gateway.domain import Cause
from gateway.multiprocess import messages
from gateway.multiprocess.channel import Channel
from gateway.multiprocess.worker.context import WorkerContext
from gateway.multiprocess.worker.peer_client import PeerRequest
from gateway.multiprocess.worker.process import WorkerServer
from gateway.transports.http.uvicorn_server import make_config
from tests.support.scripted_peer import local_app
from tests.support.time import in_real_time


class IdleSluice:
    def __init__(self) -> None:
        self.drains: list[float] = []
        self.ended = False
        self.metrics = self.registry = self
        self.endings = Counter({Cause.COMPLETED: 2})

    async def drain(self, timeout_s: float) -> None:
        self.drains.append(timeout_s)

    def end_all(self) -> None:
        self.ended = True


class Worker:
    def __init__(self, process: WorkerServer, sluice: IdleSluice, parent: Channel) -> None:
        self.process = process
        self.sluice = sluice
        self.parent = parent
        self._messages = parent.messages()

    async def sent(self) -> Any:
        return await anext(self._messages)

    async def handle(self, *received: messages.Message) -> None:
        for message in (*received, messages.Ping()):
            self.parent.send(message)
        while await self.sent() != messages.Pong():
            pass


@asynccontextmanager
async def worker() -> AsyncIterator[Worker]:
    ours, theirs = socket.socketpair()
    parent = await Channel.open(ours)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        context = WorkerContext(0, 2, theirs, Path(folder))
        context.wrap(local_app, has_request=lambda _: False, render_metrics=bytes, stall_timeout_s=30)
        config = make_config(local_app, lifespan="off")
        config.load()
        process = WorkerServer(config)
        process.lifespan = config.lifespan_class(config)
        process.context = context
        sluice = IdleSluice()
        process.sluice = sluice  # type: ignore[assignment]
        await process.startup([])
        # It ends the process some seconds after the parent's death, and with it the test.
        with patch.object(os, "_exit"):
            yield Worker(process, sluice, parent)
            parent.close()
            process.force_exit = True
            await process.shutdown()
            while Path(folder).exists():
                await asyncio.sleep(0.001)


@in_real_time
async def test_it_drains_and_stays_until_all_workers_have() -> None:
    async with worker() as one:
        one.parent.send(messages.Drain(3.0))

        assert await one.sent() == messages.WorkerDrained()
        assert (one.sluice.drains, one.process.should_exit) == ([3.0], False)

        await one.handle(messages.Shutdown())

        assert (one.process.should_exit, one.sluice.ended) == (True, False)


@in_real_time
async def test_it_ends_running_requests_when_there_is_no_time_to_drain() -> None:
    async with worker() as one:
        await one.handle(messages.ShutdownNow())

        assert (one.process.should_exit, one.sluice.ended) == (True, True)


@in_real_time
async def test_it_ends_with_the_parent_and_removes_the_folder_of_the_sockets() -> None:
    async with worker() as one:
        one.parent.close()
        while one.process.context.folder.exists():
            await asyncio.sleep(0.001)

        assert (one.process.should_exit, one.sluice.ended) == (True, True)


@in_real_time
async def test_it_serves_the_other_workers_and_reports_its_endings_when_it_exits() -> None:
    async with worker() as one:
        request = await PeerRequest.send(one.process.context.socket_path(0), "GET", b"/v1/models")

        assert (await request.head())[0] == 200
        assert await request.body() == b"here"

        request.close()
        await one.process.shutdown()

        assert await one.sent() == messages.WorkerClosed({"completed": 2})


@in_real_time
async def test_it_takes_no_signals_from_the_terminal() -> None:
    async with worker() as one:
        before = signal.getsignal(signal.SIGTERM)
        with one.process.capture_signals():
            assert signal.getsignal(signal.SIGTERM) is before
