"""The line between the house and one worker: a pair of sockets. Its end is how either notices the other's death."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

from gateway.multiprocess.messages import Message, decode, encode


class Channel:
    """One end. Made in the loop that will use it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Channel:
        """Use this end of a pair."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Send and return at once. To an end that is gone nothing is sent; `messages` tells that it is."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def messages(self) -> AsyncIterator[Message]:
        """What the other end says, until it is gone."""
        try:
            while (line := await self._reader.readline()).endswith(b"\n"):
                yield decode(line)
        except ConnectionError:
            return

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


__all__ = ["Channel"]
