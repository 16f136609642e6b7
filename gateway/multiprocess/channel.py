"""The connection between the parent process and one worker: a pair of sockets. Either process notices the other's death
by the end of the stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

from gateway.multiprocess.messages import Message, decode, encode


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Channel:
        """Use this end of a pair, in the running event loop."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Buffer the message and return at once. Where the other end is gone, nothing is sent; `messages` then ends."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def messages(self) -> AsyncIterator[Message]:
        """The messages of the other end, until it is gone."""
        try:
            while (line := await self._reader.readline()).endswith(b"\n"):
                yield decode(line)
        except ConnectionError:
            return

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
