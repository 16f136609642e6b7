"""A worker's place in the house: what it has where a server of one process has the whole thing.

Reads what the house says and hands it to whom it concerns; says what the house has to know.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import assert_never

from gateway.admission.gate import GateMetrics
from gateway.clock import Clock
from gateway.engine.base import RecoveryReport
from gateway.multiprocess import stream_ids
from gateway.multiprocess.channel import Channel
from gateway.multiprocess.messages import (
    AbortClient,
    AcquirePermit,
    Drain,
    EngineAbandoned,
    EngineLost,
    EngineUnresponsive,
    EngineUp,
    Message,
    PermitGranted,
    PermitRefused,
    Ping,
    Pong,
    ReleasePermit,
    Shutdown,
    ShutdownNow,
    WorkerClosed,
    WorkerDrained,
    WorkerFailed,
    WorkerMessage,
    WorkerReady,
)
from gateway.multiprocess.worker.engine_host_client import EngineHostClient
from gateway.multiprocess.worker.gate import RemoteGate
from gateway.multiprocess.worker.metrics_merge import MetricsPage

logger = logging.getLogger("sluice")


class WorkerContext:
    """The worker of that number among so many. `line` is its end of the channel, `folder` where workers meet."""

    def __init__(self, number: int, count: int, line: socket.socket, folder: Path) -> None:
        self.number = number
        self.count = count
        self.folder = folder
        self.on_shutdown: Callable[[Drain | Shutdown | ShutdownNow], None] = lambda _: None
        """Told what the process shall do."""
        self.engine_host = EngineHostClient(number, count, self.send)
        self.new_id = partial(stream_ids.new, number)
        self._line = line
        self._channel: Channel | None = None
        self._gate: RemoteGate | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def socket_path(self, number: int) -> Path:
        """Where a worker listens for the others."""
        return self.folder / f"worker-{number}.sock"

    def gate(self, *, max_concurrent: int, clock: Clock, instrumentation: GateMetrics) -> RemoteGate:
        """The gate of this worker; there is one."""
        self._gate = RemoteGate(
            max_concurrent=max_concurrent, clock=clock, instrumentation=instrumentation, send=self.send
        )
        return self._gate

    def peers(self) -> dict[int, Path]:
        """Where the other workers listen, by number."""
        return {number: self.socket_path(number) for number in range(self.count) if number != self.number}

    def page(self, text: bytes) -> MetricsPage:
        """This worker's metrics, with what the others need to make one of them all."""
        client = self.engine_host.client
        if client is None:
            return MetricsPage(text.decode())
        return MetricsPage(
            text.decode(),
            {str(engine): when_s for engine, when_s in client.stats_received_s.items()},
            client.has_requests,
        )

    def share(self, total: int) -> int:
        """This worker's part of what all of them may have together."""
        return total // self.count

    async def open(self, gone: Callable[[], None]) -> None:
        """Begin to listen to the house; `gone` is told when it is not there any more."""
        self._channel = await Channel.over(self._line)
        self._own(asyncio.get_running_loop().create_task(self._listen(self._channel, gone)))

    def send(self, message: WorkerMessage) -> None:
        """Say something to the house."""
        if self._channel is not None:
            self._channel.send(message)

    def send_ready(self, model: str, chats: bool, recovery: RecoveryReport | None = None, explained: int = 0) -> None:
        """This worker serves on the engine of the day; so many deaths of earlier ones are explained."""
        found = recovery or RecoveryReport(0, {})
        report = WorkerReady(
            self.engine_host.generation, model, chats, found.continued, found.failed, found.expelled, explained
        )
        self.send(report)

    def send_failed(self, message: str, exit_code: int) -> None:
        """This worker cannot serve."""
        self.send(WorkerFailed(message, exit_code))

    def send_drained(self) -> None:
        """Nothing runs here any more."""
        self.send(WorkerDrained())

    def send_closed(self, endings: Mapping[str, int]) -> None:
        """This worker ends; how often its requests have ended in each way."""
        self.send(WorkerClosed(endings))

    async def _listen(self, channel: Channel, gone: Callable[[], None]) -> None:
        async for message in channel.messages():
            self._handle(message)
        gone()

    def _handle(self, message: Message) -> None:
        gate = self._gate
        match message:
            case PermitGranted():
                if gate is not None:
                    gate.on_granted(message)
            case PermitRefused():
                if gate is not None:
                    gate.on_refused(message)
            case EngineUp():
                self.engine_host.on_engine_up(message)
            case EngineLost():
                self.engine_host.on_engine_lost(message)
            case EngineAbandoned():
                self.engine_host.on_engine_abandoned(message)
            case AbortClient(number):
                self._own(asyncio.get_running_loop().create_task(self._abort_client(number)))
            case Drain() | Shutdown() | ShutdownNow():
                self.on_shutdown(message)
            case Ping():
                self.send(Pong())
            case (
                Pong()
                | WorkerReady()
                | EngineUnresponsive()
                | WorkerFailed()
                | WorkerDrained()
                | WorkerClosed()
                | AcquirePermit()
                | ReleasePermit()
            ):
                raise AssertionError("workers say this, and do not hear it")
            case _:
                assert_never(message)

    async def _abort_client(self, number: int) -> None:
        client = self.engine_host.client
        if client is None:
            return
        try:
            await client.abort_client(number)
        except Exception:
            # A dead engine has none of them either.
            logger.debug("the requests of worker %d could not be ended", number, exc_info=True)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


__all__ = ["WorkerContext"]
