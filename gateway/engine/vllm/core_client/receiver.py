"""Receives the engine's outputs without pyzmq's asyncio layer, and past vLLM's queue where that is possible.

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


def install_receiver(core: Any, consume: Callable[[Any], bool]) -> ZmqReceiver | None:
    """Replace the socket and the queue of vLLM's client, unless its own task already receives; then None."""
    resources = core.resources
    if resources.output_queue_task is not None:
        return None
    socket = resources.output_socket
    receiver = resources.output_socket = ZmqReceiver(socket)
    core.outputs_queue = InlineOutputQueue(consume)
    core._ensure_output_queue_task()
    # vLLM's task has taken the receiver; its shutdown closes the socket.
    resources.output_socket = socket
    return receiver


class ZmqReceiver:
    """Replaces the `zmq.asyncio.Socket` from which vLLM's task receives, because that costs more than a token."""

    def __init__(self, sock: Any) -> None:
        """`sock` must not have been received from, and stays its owner's to close. To be made in the loop that
        receives."""
        self._sock: Any = zmq.Socket.shadow(sock.underlying)
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        # A duplicate: ZeroMQ closes its own descriptor, whose number may be another file's before the loop notices.
        self._fd: int | None = os.dup(self._sock.FD)
        self._loop.add_reader(self._fd, self._wake)

    @property
    def has_message(self) -> bool:
        if self._fd is None or not self._sock.getsockopt(zmq.EVENTS) & _READABLE:
            return False
        # Reading the option resets the descriptor, which does not become readable for this message again.
        self._wake()
        return True

    async def recv_multipart(self, *, copy: bool) -> Any:
        """The next message. Gives other tasks a turn, also where one has arrived already."""
        try:
            waited = False
            # The descriptor only shows that something has happened since the socket was last found empty
            # (zmq_getsockopt(3), ZMQ_FD), so the option is read first.
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
        """Stop watching the socket."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class InlineOutputQueue(asyncio.Queue[Any]):
    """Replaces vLLM's queue between the task that receives a step of the engine and the one that processes it, because
    a step that `consume` can process needs no second task. Order is kept: no step passes one that waits or is being
    processed."""

    def __init__(self, consume: Callable[[Any], bool]) -> None:
        """`consume` processes as much of a step as it can, and returns whether that was all of it."""
        super().__init__()
        self._consume = consume
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
    """Replaces the queue of outputs of a request that has ended already."""

    def put(self, output: Any) -> None:
        """Discard it."""
