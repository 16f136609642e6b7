"""A loopback server with the contract of resumable streams for one canned transcript, which cuts connections on cue.

Raw sockets and threads, because the point is how a connection ends: by FIN, by RST, with a tidy end that lacks
`[DONE]`, or not at all.
"""

from __future__ import annotations

import contextlib
import enum
import json
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KEEP_ALIVE = b": keep-alive\n"
STREAM_ID = "chatcmpl-1"


class How(enum.Enum):
    """How a connection ends."""

    FIN = "fin"
    RST = "rst"
    TIDY = "tidy end"
    STALL = "stall"


@dataclass(frozen=True)
class Cut:
    """Send this many bytes of the body, then end the connection. `down`: the server is down before that."""

    after_bytes: int
    how: How = How.FIN
    down: bool = False


@dataclass(frozen=True)
class Refuse:
    """Answer with this status and an empty body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One received request; names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


def numbered(payloads: Sequence[bytes]) -> list[bytes]:
    """The events of a resumable stream: these payloads, then `[DONE]`."""
    return [b"id: %d\ndata: %s\n\n" % (seq, data) for seq, data in enumerate([*payloads, b"[DONE]"], 1)]


def with_comments(events: Sequence[bytes]) -> bytes:
    """The events as the server sends them when it is slow: a lone comment line before each."""
    return b"".join(KEEP_ALIVE + event for event in events)


def chat(texts: Sequence[str]) -> list[bytes]:
    """The events of a chat stream."""
    shared = {"id": STREAM_ID, "object": "chat.completion.chunk", "created": 1, "model": "canned"}

    def chunk(delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return json.dumps({**shared, "choices": [choice]}, ensure_ascii=False).encode()

    return numbered([*(chunk({"content": text}, None) for text in texts), chunk({}, "stop")])


class CuttingServer:
    """Serves `events`. Each streaming request takes the next step of `plan`; when that is used up, all is served."""

    def __init__(self, events: Sequence[bytes], *, resumable: bool = True) -> None:
        self.events = list(events)
        self.plan: list[Cut | Refuse] = []
        self.requests: list[Request] = []
        self.hung_up = threading.Event()
        """Set when the client leaves a stalled connection."""
        self._resumable = resumable
        self._port = 0
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> CuttingServer:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in self._threads)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def asked(self) -> list[str]:
        """Methods and paths in order."""
        return [f"{request.method} {request.path}" for request in self.requests]

    def up(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen()
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def down(self) -> None:
        """Refuse connections."""
        if self._listener is not None:
            # shutdown wakes the thread in accept(); close alone does not.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            # Head, chunk and end are written apart; Nagle would hold each back until the one before is acknowledged.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as reader:
                while (request := _read(reader)) is not None:
                    self.requests.append(request)
                    if not self._answer(connection, request):
                        break
        except OSError:
            pass
        finally:
            self._connections.discard(connection)

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        """Answer; returns whether the connection can be used again."""
        step = self.plan.pop(0) if self.plan else None
        if isinstance(step, Refuse):
            lines = "".join(f"{name}: {value}\r\n" for name, value in step.headers.items())
            length = "" if step.status == 204 else "Content-Length: 0\r\n"
            connection.sendall(f"HTTP/1.1 {step.status} Because\r\n{lines}{length}\r\n".encode())
            return True
        last = int(request.headers.get("last-event-id", 0))
        connection.sendall(self._head())
        body = with_comments(self.events[last:]) if self._resumable else b"".join(self.events)
        sent = body if step is None else body[: step.after_bytes]
        if sent:
            connection.sendall(b"%x\r\n%s\r\n" % (len(sent), sent))
        if step is None or step.how is How.TIDY:
            connection.sendall(b"0\r\n\r\n")
            return True
        if step.down:
            self.down()
        if step.how is How.STALL:
            with contextlib.suppress(ConnectionError):
                connection.recv(1)
            self.hung_up.set()
        elif step.how is How.RST:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _head(self) -> bytes:
        extra = f"X-Stream-Id: {STREAM_ID}\r\nX-Stream-Resumable: 30\r\n" if self._resumable else ""
        return (
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            f"Transfer-Encoding: chunked\r\n{extra}\r\n"
        ).encode()


def _read(reader: Any) -> Request | None:
    first = reader.readline()
    if not first:
        return None
    method, path, _ = first.decode().split()
    headers = {}
    while line := reader.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    reader.read(int(headers.get("content-length", 0)))
    return Request(method, path, headers)


__all__ = [
    "KEEP_ALIVE",
    "STREAM_ID",
    "Cut",
    "CuttingServer",
    "How",
    "Refuse",
    "Request",
    "chat",
    "numbered",
    "with_comments",
]
