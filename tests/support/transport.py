"""A connection without a socket: what the server's protocol writes, byte for byte, in virtual time."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import orjson
import uvicorn
from uvicorn.server import ServerState

from gateway.transports.http.connection import HttpConnection


class Socket:
    """The parts of a socket that the protocol uses: its family, and the kernel's state of the peer."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.family = family
        self.options: dict[tuple[int, int], int | bytes] = {}
        self.retransmits = 0
        self.probes = 0
        self.silent_ms = 0
        self.closed = False

    def fileno(self) -> int:
        return -1

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 8000)

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 50000)

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        self.options[level, name] = value

    def getsockopt(self, level: int, name: int, length: int) -> bytes:
        if self.closed:
            raise OSError("closed")
        info = bytes([1, 0, self.retransmits, self.probes]) + bytes(52) + self.silent_ms.to_bytes(4, sys.byteorder)
        return info[:length]


class Transport(asyncio.Transport):
    """Collects what is written; closing is reported to the protocol in the next turn, as a socket's is."""

    def __init__(self, protocol: asyncio.Protocol, family: int) -> None:
        self.socket = Socket(family)
        addresses = {"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)}
        super().__init__({**addresses, "socket": self.socket})
        self.written = b""
        self.aborted = False
        self.unsent_bytes = 0
        self.high_water: int | None = None
        self._protocol = protocol
        self._closing = False
        self.half_closed = False
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self._closing
        self.half_closed = True

    def write(self, data: Any) -> None:
        assert not self._closing, "written after the end"
        assert not self.half_closed, "written after the end of writing"
        self.written += bytes(data)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high_water = high

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise NotImplementedError

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Connection:
    """A client's connection to the server's protocol in front of `app`."""

    def __init__(
        self, app: Any, *, family: int = socket.AF_INET, state: ServerState | None = None, **limits: Any
    ) -> None:
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        kind = type("Limited", (HttpConnection,), limits)
        self.protocol: HttpConnection = kind(config=config, server_state=state or ServerState(), app_state={})
        self.transport = Transport(self.protocol, family)
        self.protocol.connection_made(self.transport)

    def feed(self, *parts: bytes) -> None:
        """Send bytes, each part in a packet of its own."""
        for part in parts:
            if not self.gone:
                self.protocol.data_received(part)

    def hang_up(self) -> None:
        """The client closes."""
        self.transport.close()

    @property
    def received(self) -> bytes:
        return self.transport.written

    @property
    def closed(self) -> bool:
        """Whether the server sends no more; it may still read and drop for a while."""
        return self.transport.is_closing() or self.transport.half_closed

    @property
    def gone(self) -> bool:
        """Whether the connection has been closed."""
        return self.transport.is_closing()

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of the one response."""
        head, _, body = self.received.partition(b"\r\n\r\n")
        return int(head.split()[1]), orjson.loads(body)


__all__ = ["Connection", "Socket"]
