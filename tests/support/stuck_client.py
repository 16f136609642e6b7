"""A client that stops reading."""

from __future__ import annotations

import select
import socket
from typing import Any

from tests.support.server import Server, request_bytes
from tests.support.stream_client import COMPLETIONS, Answer

WORDY: dict[str, Any] = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
"""Chunks of some 350 bytes instead of 200: buffers are sooner full."""


class StuckClient:
    """A client with a tiny receive window that reads only in `read`."""

    def __init__(self, server: Server, body: dict[str, Any], headers: dict[str, str]) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect(("127.0.0.1", server.port))
        self.sock.sendall(request_bytes(body, COMPLETIONS, headers))
        self.port = int(self.sock.getsockname()[1])
        self._wire = b""

    def dropped(self) -> bool:
        """Whether the server has broken the connection."""
        watch = select.poll()
        watch.register(self.sock, 0)
        return bool(watch.poll(0))

    def read(self) -> Answer:
        """Read everything there is, to the end or to the break."""
        self.sock.settimeout(30)
        try:
            while not self._wire.endswith(b"\r\n0\r\n\r\n") and (part := self.sock.recv(65536)):
                self._wire += part
        except ConnectionError:
            pass
        head, _, rest = self._wire.partition(b"\r\n\r\n")
        answer = Answer(status=int(head.split()[1]))
        answer.headers = dict(line.lower().split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:])
        while (size := rest.partition(b"\r\n")[0]) and len(rest) >= int(size, 16) + len(size) + 4:
            start = len(size) + 2
            answer.body += rest[start : start + int(size, 16)]
            rest = rest[start + int(size, 16) + 2 :]
            answer.whole = int(size, 16) == 0
        return answer

    def close(self) -> None:
        self.sock.close()


__all__ = ["WORDY", "StuckClient"]
