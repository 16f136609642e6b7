"""One worker as the parent process sees it: its process, the channel to it, and its permits."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from multiprocessing import get_context, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from gateway.admission.gate import AdmissionControl
from gateway.multiprocess.channel import Channel
from gateway.multiprocess.messages import AcquirePermit, Message, ParentMessage, Ping, Pong, ReleasePermit
from gateway.multiprocess.parent.permit_server import PermitServer

logger = logging.getLogger("sluice")

CHECK_EVERY_S = 5.0
# After this many checks without a message, which take a minute, a worker is stuck: nothing holds up its event loop for
# longer, and the worst case is imports on a busy machine. Checks are counted and not timed, because a machine that has
# been suspended is not the worker's fault. A Kubernetes probe would not find one stuck worker of several, because each
# probe can reach another worker.
MAX_UNANSWERED = 12
_BLOCKED_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def spawn(target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> BaseProcess:
    """Start a process in which the terminal's signals are blocked from its first moment on."""
    # multiprocessing's resource tracker unblocks signals in the thread that starts it, so it is started before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        process = get_context("spawn").Process(target=target, args=arguments, name=name)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


class WorkerHandle:
    """`sock` is the parent's end of the channel."""

    def __init__(self, number: int, process: BaseProcess, sock: socket.socket, gate: AdmissionControl) -> None:
        self.number = number
        self.process = process
        self.is_gone = False
        """Whether the channel is closed: the process is dead, or will be soon."""
        self.is_drained = False
        self._permits = PermitServer(gate, self.send)
        self._sock = sock
        self._channel: Channel | None = None
        self._unanswered = 0

    async def open(self) -> None:
        """Open the channel. Messages sent before are dropped."""
        self._channel = await Channel.open(self._sock)

    async def receive(self, handle: Callable[[WorkerHandle, Message], None]) -> None:
        """Handle the worker's messages until it is gone; those about permits and pings here, others by `handle`."""
        assert self._channel is not None
        async for message in self._channel.messages():
            self._unanswered = 0
            match message:
                case Pong():
                    pass
                case AcquirePermit():
                    self._permits.acquire(message)
                case ReleasePermit():
                    self._permits.release(message)
                case _:
                    handle(self, message)
        self.is_gone = True
        self._permits.release_all()
        self._channel.close()

    def send(self, message: ParentMessage) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def check(self) -> None:
        """Called every `CHECK_EVERY_S`: kills a worker that is stuck, so that the others take notice."""
        if self._unanswered >= MAX_UNANSWERED and not self.is_gone:
            logger.error("worker %d does not answer; it is killed", self.number)
            self.process.kill()
        self._unanswered += 1
        self.send(Ping())

    async def join(self, within_s: float) -> None:
        """Wait for the end of the process, and kill it after `within_s`."""
        await asyncio.to_thread(self.process.join, within_s)
        if self.process.is_alive():
            self.process.kill()
            await asyncio.to_thread(self.process.join)
