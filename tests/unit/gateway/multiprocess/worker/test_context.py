"""The context of a worker; `parent/test_worker_handle.py` has its channel with the parent at the other end."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.domain import Endpoint
from gateway.engine.base import RecoveryReport
from gateway.multiprocess import messages, stream_ids
from gateway.multiprocess.channel import Channel
from gateway.multiprocess.messages import Message
from gateway.multiprocess.worker.context import WorkerContext
from tests.support.asgi import Client
from tests.support.engine import ScriptedEngine
from tests.support.scripted_peer import local_app
from tests.support.time import in_real_time
from tests.unit.gateway.multiprocess.worker.test_engine_host_client import ScriptedClient


class Worker:
    """Worker 1 of 4, and the parent's end of its channel."""

    def __init__(self, context: WorkerContext, parent: Channel) -> None:
        self.context = context
        self.parent = parent
        self._messages = parent.messages()

    async def sent(self) -> Message:
        """The next message to the parent."""
        return await anext(self._messages)

    async def handle(self, *received: Message) -> None:
        """Have the worker handle these messages."""
        for message in (*received, messages.Ping()):
            self.parent.send(message)

        assert await self.sent() == messages.Pong()


@asynccontextmanager
async def worker() -> AsyncIterator[Worker]:
    ours, theirs = socket.socketpair()
    parent = await Channel.open(ours)
    lost = asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        context = WorkerContext(1, 4, theirs, Path(folder))
        await context.open(lost.set)
        yield Worker(context, parent)
        parent.close()
        await lost.wait()


@in_real_time
async def test_a_workers_share_and_ids_are_its_own_and_the_parent_counts_restarts() -> None:
    async with worker() as one:
        stream_id = Endpoint.CHAT.id_prefix + one.context.new_id()

        assert stream_ids.worker_of(stream_id) == 1
        assert one.context.share_of(4002) == 1000
        assert one.context.max_restarts(3) is None


@in_real_time
async def test_the_model_and_the_fates_of_requests_are_sent_to_the_parent() -> None:
    async with worker() as one:
        await one.handle(messages.EngineUp(1, {}))
        await one.context.engine_host.next_addresses()
        engine = ScriptedEngine()
        engine.deaths_explained = 2
        recovery = RecoveryReport(continued=3, failed={"grammar": 1}, expelled=1)
        one.context.on_serving(engine, has_chat=True, recovery=recovery)

        assert await one.sent() == messages.WorkerReady(1, "scripted", True, 3, {"grammar": 1}, 1, 2)


@in_real_time
async def test_the_requests_of_a_dead_worker_are_aborted() -> None:
    async with worker() as one:
        await one.handle(messages.AbortClient(2))
        client = ScriptedClient()
        one.context.engine_host.attach(client)
        await one.handle(messages.AbortClient(3))

        assert client.aborted == [3]


@in_real_time
async def test_an_abort_that_a_dead_engine_refuses_is_no_error() -> None:
    class DeadClient(ScriptedClient):
        async def abort_client(self, number: int) -> None:
            raise RuntimeError("dead")

    async with worker() as one:
        one.context.engine_host.attach(DeadClient())
        await one.handle(messages.AbortClient(3))
        await one.handle()


@in_real_time
async def test_its_page_carries_the_age_of_its_statistics() -> None:
    async with worker() as one:
        app = one.context.wrap(
            local_app, has_request=lambda _: False, render_metrics=lambda: b"a 1.0\n", stall_timeout_s=30
        )
        page = await Client(one.context.peer_app, "GET", "/metrics").finish()

        assert page.headers["x-sluice-state"] == '{"stats_received_s":{},"has_requests":false}'

        one.context.engine_host.attach(ScriptedClient({0: 5.0}, has_requests=True))
        page = await Client(one.context.peer_app, "GET", "/metrics").finish()

        assert page.headers["x-sluice-state"] == '{"stats_received_s":{"0":5.0},"has_requests":true}'
        assert (await Client(app, "GET", "/").finish()).body == b"here"


@in_real_time
async def test_requests_about_streams_of_peers_that_are_gone_are_a_503() -> None:
    async with worker() as one:
        app = one.context.wrap(local_app, has_request=lambda _: False, render_metrics=bytes, stall_timeout_s=30)
        for number, status in ((0, 503), (1, 200), (2, 503), (4, 200)):
            path = f"/v1/streams/{Endpoint.CHAT.id_prefix}{stream_ids.new(number)}"

            assert (await Client(app, "GET", path).finish()).status == status
