"""How the engine's outputs come in: without pyzmq's asyncio layer, and past vLLM's queue where they can.

That layer makes two futures and reads several options for every message, and vLLM's task that receives only wakes
another one that processes: for a few streams, both cost more than their tokens.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import zmq

# A plain number: flags of an enum are made anew by every operation.
_READABLE = int(zmq.POLLIN)


class ZmqReceiver:
    """Stands where vLLM's task receives from its `zmq.asyncio.Socket`."""

    def __init__(self, sock: Any) -> None:
        """`sock` must not have been received from, and stays its owner's to close. To be made in the loop that will
        receive."""
        self._sock: Any = zmq.Socket.shadow(sock.underlying)
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        # A descriptor of our own: ZeroMQ closes its, and the number may be somebody else's by the time that we hear.
        self._fd: int | None = os.dup(self._sock.FD)
        self._loop.add_reader(self._fd, self._wake)

    @property
    def has_message(self) -> bool:
        """Whether there is a message."""
        if self._fd is None or not self._sock.getsockopt(zmq.EVENTS) & _READABLE:
            return False
        # Who asks is told once: the descriptor will not speak of this message any more.
        self._wake()
        return True

    async def recv_multipart(self, *, copy: bool) -> Any:
        """The next message. Gives other tasks a turn, also where there is one already."""
        try:
            waited = False
            # The descriptor only says that something has happened since the socket was last found empty
            # (zmq_getsockopt(3), ZMQ_FD), so it is asked first and waited for then.
            while not self._sock.getsockopt(zmq.EVENTS) & _READABLE:
                self._waiter = self._loop.create_future()
                await self._waiter
                waited = True
            if not waited:
                await asyncio.sleep(0)
            frames = self._sock.recv_multipart(zmq.NOBLOCK, copy=copy)
        except BaseException:
            self.close()
            raise
        return frames

    def close(self) -> None:
        """Watch no more."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class InlineOutputQueue(asyncio.Queue[Any]):
    """Stands where vLLM keeps a step of the engine between its task that receives and its task that processes.

    What `take` can do within the call need not wait for the other task. Nothing passes what waits already, or is being
    processed.
    """

    def __init__(self, take: Callable[[Any], bool]) -> None:
        """`take` does what it can of a step and tells whether that was all of it."""
        super().__init__()
        self._consume = take
        self._is_awaited = False

    async def get(self) -> Any:
        self._is_awaited = True
        try:
            return await super().get()
        finally:
            self._is_awaited = False

    def put_nowait(self, item: Any) -> None:
        if self._is_awaited and self.empty() and not isinstance(item, Exception) and self._consume(item):
            return
        super().put_nowait(item)


class DiscardingQueue:
    """Stands where vLLM puts the outputs of a request, for one that has had its ending."""

    def put(self, output: Any) -> None:
        """Forget it."""


__all__ = ["DiscardingQueue", "InlineOutputQueue", "ZmqReceiver"]
