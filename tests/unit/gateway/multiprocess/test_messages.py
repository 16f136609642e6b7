from __future__ import annotations

import asyncio
import socket
from typing import get_args

import pytest

from gateway.multiprocess import messages
from gateway.multiprocess.channel import Channel
from gateway.multiprocess.messages import (
    AbortClient,
    AcquirePermit,
    Drain,
    EngineUp,
    Message,
    PermitGranted,
    PermitRefused,
    Shutdown,
    WorkerFailed,
    WorkerReady,
)

SAID: list[Message] = [
    EngineUp(3, {"input_address": "ipc:///a", "output_address": "ipc:///b"}),
    PermitRefused(7, "The server is full.\nReally.", "queue_full", 12),
    Drain(2.5),
    Shutdown(),
    AbortClient(1),
    PermitGranted(9),
    AcquirePermit(1, 4),
    WorkerReady(2, "a model", True, 5, {"grammar": 1}),
    WorkerFailed("Nö.", 2),
]


@pytest.mark.parametrize("message", SAID, ids=lambda message: type(message).__name__)
def test_what_is_said_is_heard(message: Message) -> None:
    line = messages.encode(message)

    assert line.count(b"\n") == 1
    assert messages.decode(line) == message


def test_every_message_has_a_line_of_its_own() -> None:
    assert set(messages._KINDS.values()) == {*get_args(messages.ParentMessage), *get_args(messages.WorkerMessage)}


def test_a_channel_carries_them_in_order_and_ends_with_its_other_end() -> None:
    async def talk() -> list[Message]:
        ours, theirs = socket.socketpair()
        here, there = await Channel.over(ours), await Channel.over(theirs)
        for message in SAID:
            here.send(message)
        here.close()
        heard = [message async for message in there.messages()]
        # Nobody hears it, and nobody minds.
        here.send(Shutdown())
        there.close()
        return heard

    assert asyncio.run(talk()) == SAID


def test_half_a_message_of_a_dead_process_is_nothing() -> None:
    async def talk() -> list[Message]:
        ours, theirs = socket.socketpair()
        there = await Channel.over(theirs)
        ours.sendall(messages.encode(Drain(1.0)) + messages.encode(Shutdown())[:-3])
        ours.close()
        heard = [message async for message in there.messages()]
        there.close()
        return heard

    assert asyncio.run(talk()) == [Drain(1.0)]
