"""A worker as the house sees it: its process, the line to it, and what it holds."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from multiprocessing import get_context, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from gateway.admission.gate import Gate
from gateway.multiprocess.channel import Channel
from gateway.multiprocess.messages import AcquirePermit, Message, ParentMessage, Ping, Pong, ReleasePermit
from gateway.multiprocess.parent.permit_server import PermitServer

logger = logging.getLogger("sluice")

# So many looks without an answer, a minute of them: more than a worker's event loop is held up by at the worst, which
# is imports on a busy machine. Counted and not timed: a machine that stood still is nobody's fault. A probe of
# Kubernetes would not find one of several that is stuck: it meets another worker each time.
MAX_UNANSWERED = 12
CHECK_EVERY_S = 5.0
_BLOCKED_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def spawn(target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> BaseProcess:
    """Start a process that hears no signal of the terminal's, from its first moment on."""
    # multiprocessing's resource tracker lifts the block in the thread that starts it, so it is started before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        process = get_context("spawn").Process(target=target, args=arguments, name=name)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


class WorkerHandle:
    """One worker. `line` is the house's end of the channel."""

    def __init__(self, number: int, process: BaseProcess, line: socket.socket, gate: Gate) -> None:
        self.number = number
        self.process = process
        self.permits = PermitServer(gate, self.send)
        self.is_gone = False
        """Whether the line is dead, and therefore the process, or soon."""
        self.is_drained = False
        self._line = line
        self._channel: Channel | None = None
        self._unanswered = 0

    async def open(self) -> None:
        """Begin to use the line. Before, nothing can be told."""
        self._channel = await Channel.over(self._line)

    async def receive(self, hear: Callable[[WorkerHandle, Message], None]) -> None:
        """Pass on what it says, until it is gone."""
        assert self._channel is not None
        async for message in self._channel.messages():
            self._unanswered = 0
            match message:
                case Pong():
                    pass
                case AcquirePermit():
                    self.permits.acquire(message)
                case ReleasePermit():
                    self.permits.release(message)
                case _:
                    hear(self, message)
        self.is_gone = True
        self.permits.release_all()

    def send(self, message: ParentMessage) -> None:
        """Say something to it."""
        if self._channel is not None:
            self._channel.send(message)

    def check(self) -> None:
        """To be called now and then: a worker that is stuck is ended, so that the others notice."""
        if self._unanswered >= MAX_UNANSWERED and not self.is_gone:
            logger.error("worker %d does not answer; it is ended", self.number)
            self.process.kill()
        self._unanswered += 1
        self.send(Ping())

    async def join(self, within_s: float) -> None:
        """Wait for its end, and enforce it after so long."""
        await asyncio.to_thread(self.process.join, within_s)
        if self.process.is_alive():
            self.process.kill()
            await asyncio.to_thread(self.process.join)


__all__ = ["CHECK_EVERY_S", "WorkerHandle", "spawn"]
