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
    Ask,
    Closed,
    Complaint,
    Drain,
    Drained,
    EndNow,
    Evict,
    Failed,
    GiveBack,
    GivenUp,
    Granted,
    Leave,
    Lost,
    Message,
    Ping,
    Pong,
    Ready,
    Refused,
    Report,
    Up,
)
from gateway.multiprocess.worker.engine_host_client import Tenancy
from gateway.multiprocess.worker.gate import RemoteGate
from gateway.multiprocess.worker.metrics_merge import Page

logger = logging.getLogger("sluice")


class Seat:
    """The worker of that number among so many. `line` is its end of the channel, `folder` where workers meet."""

    def __init__(self, number: int, count: int, line: socket.socket, folder: Path) -> None:
        self.number = number
        self.count = count
        self.folder = folder
        self.on_order: Callable[[Drain | Leave | EndNow], None] = lambda _: None
        """Told what the process shall do."""
        self.tenancy = Tenancy(number, count, self.report)
        self.new_id = partial(stream_ids.new, number)
        self._line = line
        self._channel: Channel | None = None
        self._gate: RemoteGate | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def socket_of(self, number: int) -> Path:
        """Where a worker listens for the others."""
        return self.folder / f"worker-{number}.sock"

    def gate(self, *, max_concurrent: int, clock: Clock, instrumentation: GateMetrics) -> RemoteGate:
        """The gate of this worker; there is one."""
        self._gate = RemoteGate(
            max_concurrent=max_concurrent, clock=clock, instrumentation=instrumentation, send=self.report
        )
        return self._gate

    def others(self) -> dict[int, Path]:
        """Where the other workers listen, by number."""
        return {number: self.socket_of(number) for number in range(self.count) if number != self.number}

    def page(self, text: bytes) -> Page:
        """This worker's metrics, with what the others need to make one of them all."""
        client = self.tenancy.client
        if client is None:
            return Page(text.decode())
        return Page(
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

    def report(self, message: Report) -> None:
        """Say something to the house."""
        if self._channel is not None:
            self._channel.send(message)

    def serves(self, model: str, chats: bool, recovery: RecoveryReport | None = None, explained: int = 0) -> None:
        """This worker serves on the engine of the day; so many deaths of earlier ones are explained."""
        found = recovery or RecoveryReport(0, {})
        report = Ready(self.tenancy.generation, model, chats, found.continued, found.failed, found.expelled, explained)
        self.report(report)

    def failed(self, message: str, exit_code: int) -> None:
        """This worker cannot serve."""
        self.report(Failed(message, exit_code))

    def drained(self) -> None:
        """Nothing runs here any more."""
        self.report(Drained())

    def closed(self, endings: Mapping[str, int]) -> None:
        """This worker ends; how often its requests have ended in each way."""
        self.report(Closed(endings))

    async def _listen(self, channel: Channel, gone: Callable[[], None]) -> None:
        async for message in channel.messages():
            self._hear(message)
        gone()

    def _hear(self, message: Message) -> None:
        gate = self._gate
        match message:
            case Granted():
                if gate is not None:
                    gate.granted(message)
            case Refused():
                if gate is not None:
                    gate.refused(message)
            case Up():
                self.tenancy.up(message)
            case Lost():
                self.tenancy.lost(message)
            case GivenUp():
                self.tenancy.given_up(message)
            case Evict(number):
                self._own(asyncio.get_running_loop().create_task(self._evict(number)))
            case Drain() | Leave() | EndNow():
                self.on_order(message)
            case Ping():
                self.report(Pong())
            case Pong() | Ready() | Complaint() | Failed() | Drained() | Closed() | Ask() | GiveBack():
                raise AssertionError("workers say this, and do not hear it")
            case _:
                assert_never(message)

    async def _evict(self, number: int) -> None:
        client = self.tenancy.client
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


__all__ = ["Seat"]
