"""Replicas that are nothing but a socket and one way to answer, to see whom a proxy asks, and how often."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum

from tests.support.server import free_port

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 10\r\n\r\noverloaded"
# Longer than what compression waits for.
_EVENT = b"data: " + b"x" * 700 + b"\n\n"
EVENTS, EVERY_S = 20, 0.05
_FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 6\r\n\r\nfailed"


class Kind(Enum):
    """What becomes of a request."""

    SERVES = "serves"
    REFUSES = "refuses"
    """503: nothing has been done."""
    FAILS = "fails"
    """500: the answer was begun."""
    BREAKS = "breaks"
    """The connection ends where the answer should be: the process was killed."""
    STREAMS = "streams"
    """One event after another."""
    DEAD = "dead"
    """The socket is closed."""


@dataclass
class Replica:
    """One of them; `begun` counts the answers that it began to make."""

    kind: Kind
    port: int = 0
    asked: int = 0
    begun: int = 0
    left: int = 0
    """Clients that left in the middle of a stream."""
    target: bytes = b""
    """Of the last request."""
    _server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; a proxy's health checks are answered in any case."""
        self.port = free_port()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def close(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                await reader.readexactly(sum(int(line[15:]) for line in lines if line.startswith(b"content-length:")))
                if b" /readyz " in first:
                    writer.write(_OK)
                    continue
                self.asked += 1
                self.target = first.split(b" ")[1]
                self.begun += self.kind is not Kind.REFUSES
                if self.kind is Kind.BREAKS:
                    break
                if self.kind is Kind.STREAMS:
                    await self._stream(reader, writer)
                    continue
                writer.write({Kind.SERVES: _OK, Kind.REFUSES: _FULL, Kind.FAILS: _FAILED}[self.kind])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n")
        writer.write(b"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n\r\n")
        for _ in range(EVENTS):
            writer.write(b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT))
            await writer.drain()
            await asyncio.sleep(EVERY_S)
            if reader.at_eof():
                self.left += 1
                raise ConnectionError
        writer.write(b"0\r\n\r\n")


__all__ = ["EVENTS", "EVERY_S", "Kind", "Replica"]
