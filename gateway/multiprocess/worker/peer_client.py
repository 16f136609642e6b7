"""An HTTP client for another worker, over its Unix socket; no more than Sluice's own server needs.

Not h11, which costs 6.5 µs of CPU per chunk of a stream against 1.4 to 3.3 µs here, ends chunks where a read ends, and
rejects bytes in targets and headers that the server's parser has accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

Headers = list[tuple[bytes, bytes]]

# Beyond this nothing more is read from the other worker's socket until the reader here has taken it.
_LIMIT_BYTES = 2**16


class PeerError(Exception):
    """The other worker cannot be reached, or its response broke off."""


class PeerRequest:
    """One request on a connection of its own. Every method raises PeerError."""

    def __init__(self, method: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._method = method
        self._reader = reader
        self._writer = writer
        self._headers: dict[bytes, bytes] = {}
        self._status = 0

    @classmethod
    async def send(
        cls, path: Path, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> PeerRequest:
        """Send a request without a body to the worker that listens at `path`."""
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=_LIMIT_BYTES)
        except OSError:
            raise PeerError from None
        lines = [method.encode() + b" " + target + b" HTTP/1.1", *(name + b": " + value for name, value in headers)]
        if not any(name == b"host" for name, _ in headers):
            lines.append(b"host: peer")
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
        return cls(method, reader, writer)

    async def head(self) -> tuple[int, Headers]:
        """The response's status and headers, with names in lower case."""
        try:
            raw = await self._reader.readuntil(b"\r\n\r\n")
            first, *lines = raw[:-4].split(b"\r\n")
            self._status = int(first.removeprefix(b"HTTP/1.1 ")[:3])
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            raise PeerError from None
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        self._headers = dict(headers)
        return self._status, headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives, chunk by chunk. Without an error, it is complete at the end."""
        if self._method == "HEAD" or self._status in (204, 304):
            return
        # Nested deeply, because async generators have no `yield from`, and the errors of both framings are the same.
        try:
            if b"content-length" in self._headers:
                left = int(self._headers[b"content-length"])
                while left > 0:
                    piece = await self._reader.read(min(left, _LIMIT_BYTES))
                    if not piece:
                        raise PeerError
                    left -= len(piece)
                    yield piece
                return
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            raise PeerError from None

    async def body(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.pieces()])

    def close(self) -> None:
        """Abort the connection; where the response is not complete, the other worker sees a disconnect."""
        self._writer.transport.abort()
