"""HTTP/1.1 on a socket that gevent's loop watches: exact times at a low price.

Bytes are taken in a callback of the loop, not by a greenlet that waits in `recv`: no switch of greenlets and no failed
`recv` for each event, and a reader that must be slow simply has its watcher stopped, so that the kernel's buffers fill
and the server feels it. The time is the kernel's (`loadtest/client/kernel_timestamps.py`), whatever the loop does
meanwhile; a slow reader's is that of reading. One greenlet waits for the end and keeps the timeouts; those cost nothing
while bytes come.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Protocol
from urllib.parse import urlsplit

import gevent.socket
import httptools
from gevent.event import Event
from gevent.hub import get_hub
from gevent.monkey import get_original

from loadtest.client import kernel_timestamps
from loadtest.client.response import End
from loadtest.client.tls import Tls

__all__ = ["Address", "Answer", "Connection", "ConnectionFailed", "Pace", "Waits"]

_CHUNK = 32 * 2**10
_READ = 1
# Small enough that a reader who stops is felt by the server after some events, not after megabytes.
_SMALL_BUFFER = 4 * 2**10


class Answer(Protocol):
    """Who takes what comes."""

    def first_byte(self, at_ns: int) -> None:
        """The first byte is here."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers, names in lower case."""

    def body(self, at_ns: int, data: bytes) -> None:
        """Part of the body. May call `leave` and `pause`."""


class ConnectionFailed(Exception):
    """No connection; `end` says what failed."""

    def __init__(self, end: End, detail: str) -> None:
        super().__init__(detail)
        self.end = end


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is."""

    host: str
    port: int
    trust: ssl.SSLContext | None
    base: str = ""

    @classmethod
    def of(cls, url: str, trust: ssl.SSLContext) -> Address:
        """Raises ValueError that says what is wrong with the URL."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a server; write it like http://127.0.0.1:8000")
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        return cls(parts.hostname, port, trust if is_tls else None, parts.path.rstrip("/"))

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """The bytes of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.base}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Waits:
    """Until when to wait for what; `perf_counter_ns` for the moments."""

    first_byte_s: float
    idle_s: float
    deadline_ns: int
    leave_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How a connection reads."""

    bytes_per_s: float | None = None
    small_buffer: bool = False


class Connection:
    """One socket, one request at a time."""

    def __init__(self, address: Address, pace: Pace, connect_s: float) -> None:
        """Connect. Raises ConnectionFailed."""
        self._pace = pace
        self._chunk = _CHUNK if pace.bytes_per_s is None else max(64, min(4096, int(pace.bytes_per_s / 8)))
        self._sock = _connected(address, pace.small_buffer, connect_s)
        if pace == Pace():
            kernel_timestamps.note(self._sock)
        self._tls: Tls | None = None
        self._loop = get_hub().loop
        self._watcher: Any = self._loop.io(self._sock.fileno(), _READ)
        self._timer: Any = None
        self._ended: tuple[End, str] | None = None
        self._to_the_end = False
        self._stays_open = False
        self.idle_since_ns = 0
        if address.trust is not None:
            try:
                self._shake(Tls(address.trust, address.host), connect_s)
            except (OSError, ssl.SSLError) as error:
                self.close()
                raise ConnectionFailed(End.TLS, str(error)) from None

    def send(self, payload: bytes, timeout_s: float) -> None:
        """Write all of it. Raises OSError (TimeoutError, too)."""
        self._write(self._tls.encrypt(payload) if self._tls is not None else payload, timeout_s)

    def receive(self, answer: Answer, waits: Waits) -> tuple[End, str]:
        """Hand the answer over until it ends; how it ended, and a detail."""
        self._answer = answer
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._to_the_end = self._stays_open = False
        self._ended = None
        self._wake = Event()
        self._failure: BaseException | None = None
        self._began_ns = self._last_ns = perf_counter_ns()
        self._has_bytes = False
        self._watcher.start(self._readable)
        try:
            while self._ended is None:
                left_ns, end = self._next_limit(waits)
                if left_ns <= 0:
                    self._finish(end, "")
                elif self._wake.wait(left_ns / 1e9):
                    break
        finally:
            self._stop()
        if self._failure is not None:
            raise self._failure
        assert self._ended is not None
        return self._ended

    @property
    def reusable(self) -> bool:
        """Whether the next request may use it."""
        return self._stays_open and self._pace == Pace()

    def is_alive(self) -> bool:
        """Whether the server has said nothing since the last answer, not even that it closes."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Give everything back."""
        self._stop()
        self._watcher.close()
        self._sock.close()

    # For the answer, from within `body`.

    def leave(self) -> None:
        """Read nothing more: the client goes."""
        self._finish(End.LEFT, "")

    def pause(self, seconds: float) -> None:
        """Take nothing from the socket for so long."""
        if self._ended is None:
            self._watcher.stop()
            self._timer = self._loop.timer(seconds)
            self._timer.start(self._resume)

    # Callbacks of the loop and of the parser.

    def _resume(self) -> None:
        self._timer.close()
        self._timer = None
        self._last_ns = perf_counter_ns()
        self._watcher.start(self._readable)

    def _readable(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self._failure = error
            self._finish(End.CLOSED, "")

    def _read(self) -> None:
        try:
            data, self._arrived_ns = kernel_timestamps.take(self._sock, self._chunk)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(End.RESET, str(error))
            return
        self._last_ns = perf_counter_ns()
        closed = not data
        if data and self._tls is not None:
            data, closed = self._tls.decrypt(data)
        if data:
            if not self._has_bytes:
                self._has_bytes = True
                self._answer.first_byte(self._arrived_ns)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                self._finish(End.CLOSED, f"not HTTP/1.1: {error}")
        if closed:
            self._finish(End.COMPLETE if self._to_the_end else End.CLOSED, "the server closed the connection")
        elif self._pace.bytes_per_s is not None and self._timer is None:
            self.pause(len(data) / self._pace.bytes_per_s)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        self._to_the_end = not framed and status not in {204, 304}
        self._answer.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._ended is None:
            self._answer.body(self._arrived_ns, data)

    def on_message_complete(self) -> None:
        # The parser knows it only now.
        self._stays_open = self._ended is None and not self._to_the_end and self._parser.should_keep_alive()
        self._finish(End.COMPLETE, "")

    # Inside.

    def _next_limit(self, waits: Waits) -> tuple[int, End]:
        """The nanoseconds to the next moment at which to give up, and what that would be."""
        limits = [(waits.deadline_ns, End.DEADLINE)]
        if waits.leave_ns is not None:
            limits.append((waits.leave_ns, End.LEFT))
        if not self._has_bytes:
            limits.append((self._began_ns + int(waits.first_byte_s * 1e9), End.TIMEOUT_FIRST))
        elif self._timer is None:
            limits.append((self._last_ns + int(waits.idle_s * 1e9), End.TIMEOUT_IDLE))
        else:
            # It is we who do not read; look again in a while.
            limits.append((perf_counter_ns() + int(waits.idle_s * 1e9), End.TIMEOUT_IDLE))
        at_ns, end = min(limits, key=lambda limit: limit[0])
        return at_ns - perf_counter_ns(), end

    def _finish(self, end: End, detail: str) -> None:
        if self._ended is None:
            self._ended = (end, detail)
            self._stop()
            self._wake.set()

    def _stop(self) -> None:
        self._watcher.stop()
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _write(self, payload: bytes, timeout_s: float) -> None:
        view = memoryview(payload)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                gevent.socket.wait_write(self._sock.fileno(), timeout=timeout_s)

    def _shake(self, tls: Tls, timeout_s: float) -> None:
        received = b""
        while True:
            done, payload = tls.shake(received)
            self._write(payload, timeout_s)
            if done:
                self._tls = tls
                return
            gevent.socket.wait_read(self._sock.fileno(), timeout=timeout_s)
            received = self._sock.recv(_CHUNK)
            if not received:
                raise ConnectionResetError("closed during the handshake")


def _connected(address: Address, small_buffer: bool, timeout_s: float) -> socket.socket:
    """A plain non-blocking socket, whatever the process has patched."""
    problem = "no address"
    try:
        places = gevent.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectionFailed(End.CONNECT, str(error)) from None
    for family, kind, protocol, _, place in places:
        sock = gevent.socket.socket(family, kind, protocol)
        try:
            if small_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(timeout_s)
            sock.connect(place)
        except OSError as error:
            problem = str(error)
            sock.close()
            continue
        plain: socket.socket = get_original("socket", "socket")(family, kind, protocol, sock.detach())
        plain.setblocking(False)
        return plain
    raise ConnectionFailed(End.CONNECT, problem)
