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
from gateway.multiprocess.messages import Ask, GiveBack, Message, Order, Ping, Pong
from gateway.multiprocess.parent.permit_server import Permits

logger = logging.getLogger("sluice")

# So many looks without an answer, a minute of them: more than a worker's event loop is held up by at the worst, which
# is imports on a busy machine. Counted and not timed: a machine that stood still is nobody's fault. A probe of
# Kubernetes would not find one of several that is stuck: it meets another worker each time.
_STUCK_AFTER = 12
LOOK_EVERY_S = 5.0
_DEAF = {signal.SIGINT, signal.SIGTERM}


def spawn(target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> BaseProcess:
    """Start a process that hears no signal of the terminal's, from its first moment on."""
    # multiprocessing's resource tracker lifts the block in the thread that starts it, so it is started before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF)
    try:
        process = get_context("spawn").Process(target=target, args=arguments, name=name)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


class Member:
    """One worker. `line` is the house's end of the channel."""

    def __init__(self, number: int, process: BaseProcess, line: socket.socket, gate: Gate) -> None:
        self.number = number
        self.process = process
        self.permits = Permits(gate, self.tell)
        self.gone = False
        """Whether the line is dead, and therefore the process, or soon."""
        self.drained = False
        self._line = line
        self._channel: Channel | None = None
        self._unanswered = 0

    async def open(self) -> None:
        """Begin to use the line. Before, nothing can be told."""
        self._channel = await Channel.over(self._line)

    async def follow(self, hear: Callable[[Member, Message], None]) -> None:
        """Pass on what it says, until it is gone."""
        assert self._channel is not None
        async for message in self._channel.messages():
            self._unanswered = 0
            match message:
                case Pong():
                    pass
                case Ask():
                    self.permits.ask(message)
                case GiveBack():
                    self.permits.give_back(message)
                case _:
                    hear(self, message)
        self.gone = True
        self.permits.clear()

    def tell(self, message: Order) -> None:
        """Say something to it."""
        if self._channel is not None:
            self._channel.send(message)

    def look_after(self) -> None:
        """To be called now and then: a worker that is stuck is ended, so that the others notice."""
        if self._unanswered >= _STUCK_AFTER and not self.gone:
            logger.error("worker %d does not answer; it is ended", self.number)
            self.process.kill()
        self._unanswered += 1
        self.tell(Ping())

    async def end(self, within_s: float) -> None:
        """Wait for its end, and enforce it after so long."""
        await asyncio.to_thread(self.process.join, within_s)
        if self.process.is_alive():
            self.process.kill()
            await asyncio.to_thread(self.process.join)


__all__ = ["LOOK_EVERY_S", "Member", "spawn"]
