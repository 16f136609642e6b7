from __future__ import annotations

import asyncio
import socket

from gateway.multiprocess import messages
from gateway.multiprocess.channel import Channel
from gateway.multiprocess.messages import Drain, Message, Shutdown
from tests.unit.gateway.multiprocess.test_messages import SAMPLES


def test_a_channel_carries_messages_in_order_and_ends_with_its_other_end() -> None:
    async def talk() -> list[Message]:
        ours, theirs = socket.socketpair()
        here, there = await Channel.open(ours), await Channel.open(theirs)
        for message in SAMPLES:
            here.send(message)
        here.close()
        received = [message async for message in there.messages()]
        # Without effect, and without an error.
        here.send(Shutdown())
        there.close()
        return received

    assert asyncio.run(talk()) == SAMPLES


def test_an_incomplete_message_of_a_dead_process_is_dropped() -> None:
    async def talk() -> list[Message]:
        ours, theirs = socket.socketpair()
        there = await Channel.open(theirs)
        ours.sendall(messages.encode(Drain(1.0)) + messages.encode(Shutdown())[:-3])
        ours.close()
        received = [message async for message in there.messages()]
        there.close()
        return received

    assert asyncio.run(talk()) == [Drain(1.0)]
