"""Another worker process, as a script on a Unix socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Script = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

WHOLE = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: application/json\r\ncontent-length: 2\r\nx-a: b\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class ScriptedPeer:
    """Answers by the script, and records the heads of its requests."""

    def __init__(self, script: Script | bytes) -> None:
        self.heads: list[bytes] = []
        self.closed = asyncio.Event()
        """Set when a connection has ended."""
        self._script = script
        self._folder = tempfile.TemporaryDirectory()

    @property
    def path(self) -> Path:
        return Path(self._folder.name) / "sock"

    async def __aenter__(self) -> ScriptedPeer:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._folder.cleanup()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        try:
            if isinstance(self._script, bytes):
                writer.write(self._script)
            else:
                await self._script(head, reader, writer)
            await reader.read()
        except ConnectionError:
            pass
        finally:
            self.closed.set()
            writer.close()


async def local_app(scope: Any, receive: Any, send: Any) -> None:
    """The app that this worker serves itself."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


__all__ = ["CHUNKED", "WHOLE", "Script", "ScriptedPeer", "local_app"]
