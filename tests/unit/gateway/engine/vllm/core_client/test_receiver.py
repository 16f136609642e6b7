"""Over real ZeroMQ sockets: when their descriptor speaks up is the point."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvloop
import zmq
import zmq.asyncio

from gateway.engine.vllm.core_client.receiver import InlineOutputQueue, ZmqReceiver
from tests.support.time import in_virtual_time, settle

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


class Pipe:
    """A sender, and the socket that an AsyncLLM would receive from."""

    def __init__(self, folder: Any) -> None:
        self.context = zmq.asyncio.Context()
        self.theirs = self.context.socket(zmq.PULL)
        self.theirs.bind(f"ipc://{folder}/outputs")
        self.sender = zmq.Context.shadow(self.context.underlying).socket(zmq.PUSH)
        self.sender.connect(f"ipc://{folder}/outputs")

    def close(self) -> None:
        self.sender.close(0)
        self.theirs.close(0)
        self.context.term()


@pytest.fixture
def pipe(tmp_path: Any) -> Iterator[Pipe]:
    one = Pipe(tmp_path)
    yield one
    one.close()


def run(new_loop: Any, work: Any) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work)


def text(frames: Any) -> list[bytes]:
    return [bytes(frame.buffer) for frame in frames]


@LOOPS
def test_messages_come_in_order_whether_they_were_there_or_are_waited_for(new_loop: Any, pipe: Pipe) -> None:
    """Sent from another thread in bursts, so that some come while the receiver sleeps, and some while it is at work."""
    total = 3000

    def send() -> None:
        for number in range(total):
            pipe.sender.send_multipart([b"head", b"%d" % number])
            if number % 17 == 0:
                threading.Event().wait(0.001)

    async def work() -> None:
        pull = ZmqReceiver(pipe.theirs)
        sending = threading.Thread(target=send)
        sending.start()
        for number in range(total):
            frames = await asyncio.wait_for(pull.recv_multipart(copy=False), 5)

            assert text(frames) == [b"head", b"%d" % number]
        sending.join()
        pull.close()

    run(new_loop, work())


@LOOPS
def test_others_get_a_turn_while_there_is_always_a_message(new_loop: Any, pipe: Pipe) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def work() -> None:
        pull = ZmqReceiver(pipe.theirs)
        for _ in range(200):
            pipe.sender.send(b"x")
        await pull.recv_multipart(copy=False)
        counting = asyncio.create_task(count())
        for _ in range(199):
            await pull.recv_multipart(copy=False)
        counting.cancel()
        pull.close()

    run(new_loop, work())

    assert turns >= 190


@LOOPS
def test_a_receiver_that_is_cancelled_watches_no_more_and_frees_its_descriptor(new_loop: Any, pipe: Pipe) -> None:
    async def work() -> None:
        pull = ZmqReceiver(pipe.theirs)
        fd = pull._fd
        assert fd is not None
        receiving = asyncio.create_task(pull.recv_multipart(copy=False))
        await asyncio.sleep(0)
        # In vLLM's order: first the socket is closed, then the task is cancelled.
        pipe.theirs.close(0)
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            await receiving

        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

        pull.close()

    run(new_loop, work())


@LOOPS
def test_a_receiver_of_a_closed_socket_fails_instead_of_waiting(new_loop: Any, pipe: Pipe) -> None:
    async def work() -> None:
        pull = ZmqReceiver(pipe.theirs)
        pipe.theirs.close(0)
        with pytest.raises(zmq.ZMQError):
            await asyncio.wait_for(pull.recv_multipart(copy=False), 5)

    run(new_loop, work())


@LOOPS
def test_has_message_wakes_the_task_that_waits_for_one(new_loop: Any, pipe: Pipe) -> None:
    """ZeroMQ's descriptor speaks up once for each change, and asking is hearing it."""

    async def work() -> None:
        pull = ZmqReceiver(pipe.theirs)
        receiving = asyncio.create_task(pull.recv_multipart(copy=False))
        await asyncio.sleep(0.05)

        assert not pull.has_message

        pipe.sender.send(b"x")
        # Without a turn for the loop, which would notice it first.
        deadline = time.monotonic() + 5
        while not pull.has_message:
            assert time.monotonic() < deadline

        assert text(await asyncio.wait_for(receiving, 5)) == [b"x"]

        pull.close()

        assert not pull.has_message

    run(new_loop, work())


@in_virtual_time
async def test_a_step_that_is_consumed_inline_does_not_wait_for_the_other_task() -> None:
    taken: list[str] = []

    def take(item: str) -> bool:
        taken.append(item)
        return item.startswith("plain")

    outputs = InlineOutputQueue(take)
    outputs.put_nowait("plain 0")

    assert taken == [], "no task has begun to read"

    got = asyncio.create_task(outputs.get())
    await settle()

    assert await got == "plain 0"

    got = asyncio.create_task(outputs.get())
    await settle()
    outputs.put_nowait("plain 1")
    outputs.put_nowait("plain 2")
    await settle()

    assert taken == ["plain 1", "plain 2"]
    assert not got.done()

    outputs.put_nowait("other 3")
    outputs.put_nowait("plain 4")

    assert taken == ["plain 1", "plain 2", "other 3"], "nothing passes what waits"
    assert await got == "other 3"

    outputs.put_nowait("plain 5")

    assert [await outputs.get(), await outputs.get()] == ["plain 4", "plain 5"]

    got = asyncio.create_task(outputs.get())
    await settle()
    failure = OSError("the engine is gone")
    outputs.put_nowait(failure)

    assert await got is failure
    assert len(taken) == 3
