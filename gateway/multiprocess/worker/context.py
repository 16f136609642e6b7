"""The `ProcessContext` of a worker: everything that a single process has to itself and workers share through the parent
process or with each other."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

from gateway.admission.gate import GateMetrics
from gateway.clock import Clock
from gateway.engine.base import Engine, RecoveryReport
from gateway.multiprocess import messages, stream_ids
from gateway.multiprocess.channel import Channel
from gateway.multiprocess.messages import Drain, Message, Shutdown, ShutdownNow, WorkerMessage
from gateway.multiprocess.worker.engine_host_client import EngineHostClient
from gateway.multiprocess.worker.gate import RemoteGate
from gateway.multiprocess.worker.metrics_merge import MetricsPage
from gateway.multiprocess.worker.peer_metrics import PeerApp, collect_metrics
from gateway.multiprocess.worker.peer_proxy import PeerProxy

logger = logging.getLogger("sluice")


class WorkerContext:
    """Of worker `number` of `count`. `sock` is its end of the channel to the parent process; `folder` has the sockets
    on which workers serve each other."""

    _gate: RemoteGate

    def __init__(self, number: int, count: int, sock: socket.socket, folder: Path) -> None:
        self.number = number
        self.count = count
        self.folder = folder
        self.engine_host = EngineHostClient(number, count, self.send)
        self.peer_app: Any = None
        """The app for the other workers; set by `wrap`."""
        self.on_shutdown: Callable[[Drain | Shutdown | ShutdownNow], None] = lambda _: None
        self._sock = sock
        self._channel: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def socket_path(self, number: int) -> Path:
        """Where that worker listens for the others."""
        return self.folder / f"worker-{number}.sock"

    # For the app.

    def max_restarts(self, configured: int) -> int | None:
        return None

    def make_gate(self, *, max_concurrent: int, clock: Clock, instrumentation: GateMetrics, **_: Any) -> RemoteGate:
        """The parent's gate has the queue and its limits."""
        self._gate = RemoteGate(
            max_concurrent=max_concurrent, clock=clock, instrumentation=instrumentation, send=self.send
        )
        return self._gate

    def new_id(self) -> str:
        return stream_ids.new(self.number)

    def share_of(self, total: int) -> int:
        return total // self.count

    def wrap(
        self,
        app: Any,
        *,
        has_request: Callable[[str], bool],
        render_metrics: Callable[[], bytes],
        stall_timeout_s: float,
    ) -> Any:
        """Requests about other workers' streams are forwarded to them."""
        self.peer_app = PeerApp(app, lambda: self._page(render_metrics), has_request)
        return PeerProxy(app, peers=self._peers(), has_request=has_request, stall_timeout_s=stall_timeout_s)

    async def collect_metrics(self, render_metrics: Callable[[], bytes]) -> bytes:
        return await collect_metrics(lambda: self._page(render_metrics), self._peers())

    def on_serving(self, engine: Engine, *, has_chat: bool, recovery: RecoveryReport) -> None:
        self.send(
            messages.WorkerReady(
                generation=self.engine_host.generation,
                model=engine.model,
                has_chat=has_chat,
                continued=recovery.continued,
                failed=recovery.failed,
                expelled=recovery.expelled,
                explained_deaths=engine.take_explained_deaths(),
            )
        )

    def _peers(self) -> dict[int, Path]:
        return {number: self.socket_path(number) for number in range(self.count) if number != self.number}

    def _page(self, render_metrics: Callable[[], bytes]) -> MetricsPage:
        text, client = render_metrics().decode(), self.engine_host.client
        if client is None:
            return MetricsPage(text)
        received_s = {str(engine): at_s for engine, at_s in client.stats_received_s.items()}
        return MetricsPage(text, received_s, client.has_requests)

    # The channel.

    async def open(self, on_parent_lost: Callable[[], None]) -> None:
        """Open the channel and handle the parent's messages; `on_parent_lost` is called at its end."""
        self._channel = await Channel.open(self._sock)
        self._own(asyncio.get_running_loop().create_task(self._receive(self._channel, on_parent_lost)))

    def send(self, message: WorkerMessage) -> None:
        if self._channel is not None:
            self._channel.send(message)

    async def _receive(self, channel: Channel, on_parent_lost: Callable[[], None]) -> None:
        async for message in channel.messages():
            self._handle(message)
        channel.close()
        on_parent_lost()

    def _handle(self, message: Message) -> None:
        if isinstance(message, WorkerMessage):
            raise AssertionError(f"not a message for a worker: {message}")
        host = self.engine_host
        match message:
            case messages.PermitGranted():
                self._gate.on_granted(message)
            case messages.PermitRefused():
                self._gate.on_refused(message)
            case messages.EngineUp():
                host.on_engine_up(message)
            case messages.EngineLost():
                host.on_engine_lost(message)
            case messages.EngineAbandoned():
                host.on_engine_abandoned(message)
            case messages.AbortClient(client_index):
                self._own(asyncio.get_running_loop().create_task(self._abort_client(client_index)))
            case Drain() | Shutdown() | ShutdownNow():
                self.on_shutdown(message)
            case messages.Ping():
                self.send(messages.Pong())
            case _:
                assert_never(message)

    async def _abort_client(self, client_index: int) -> None:
        client = self.engine_host.client
        if client is None:
            return
        try:
            await client.abort_client(client_index)
        except Exception:
            # An engine that has died has none of its requests either.
            logger.debug("the requests of worker %d could not be aborted", client_index, exc_info=True)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
