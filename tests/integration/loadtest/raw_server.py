"""A small server on a real socket, on a thread: a script answers each connection."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.unit.loadtest.requests import chunk, ending, event

Script = Callable[[socket.socket, bytes], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: r-9\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(*parts: bytes) -> bytes:
    """As chunks of HTTP."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


LAST = b"0\r\n\r\n"
GOOD = HEAD + framed(event(chunk("a")), event(chunk("b")), ending(2)) + LAST


class Scripted:
    """Listens until it is closed. `requests` are the bytes of each; `connections` is their number."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        # Wakes `accept`, which closing alone does not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), self._tls.wrap_socket(sock, server_side=True) if self._tls else sock as sock:
            while (request := _request(sock)) is not None:
                self.requests.append(request)
                self._script(sock, request)


def _request(sock: socket.socket) -> bytes | None:
    seen = b""
    while b"\r\n\r\n" not in seen:
        part = sock.recv(65536)
        if not part:
            return None
        seen += part
    head, _, body = seen.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]):
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body
