"""HTTP/1.1 on a socket that gevent's loop watches: exact times at a low price.

A callback of the loop reads the bytes, instead of a greenlet that waits in `recv`: this saves a switch of greenlets and
a failed `recv` for each event. A slow reader stops its watcher, so that the kernel's buffers fill and the server's
writes block. Times are the kernel's (`loadtest/client/kernel_timestamps.py`), independent of the loop's load; those of
a slow reader are the times of reading. One greenlet waits for the end and enforces the timeouts, which cost nothing
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
from loadtest.client.response import TransportEnd
from loadtest.client.tls import TlsFilter

_READ_BYTES = 32 * 2**10
_READABLE = 1
# So small that the server notices a stopped reader after some events, not after megabytes.
_SMALL_BUFFER_BYTES = 4 * 2**10


class ResponseHandler(Protocol):
    """Receives a response."""

    def on_first_byte(self, at_ns: int) -> None: ...

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Names of headers are in lower case."""

    def on_body(self, at_ns: int, data: bytes) -> None:
        """Part of the body. May call `abort` and `pause` of the connection."""


class ConnectionFailed(Exception):
    """No connection; `end` is the step that failed."""

    def __init__(self, end: TransportEnd, detail: str) -> None:
        super().__init__(detail)
        self.end = end


@dataclass(frozen=True, slots=True)
class Address:
    """The address of the server."""

    host: str
    port: int
    ssl_context: ssl.SSLContext | None
    base: str = ""

    @classmethod
    def from_url(cls, url: str, ssl_context: ssl.SSLContext) -> Address:
        """Raises ValueError with the fix if this is no URL of a server."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL of a server; write it like http://127.0.0.1:8000")
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        return cls(parts.hostname, port, ssl_context if is_tls else None, parts.path.rstrip("/"))

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.base}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Limits for one response; moments are `perf_counter_ns`."""

    first_byte_s: float
    idle_s: float
    deadline_ns: int
    abort_ns: int | None = None


@dataclass(frozen=True, slots=True)
class ReadPace:
    bytes_per_s: float | None = None
    small_buffer: bool = False


class Connection:
    """One socket, one request at a time."""

    def __init__(self, address: Address, pace: ReadPace, connect_s: float) -> None:
        """Raises ConnectionFailed."""
        self._pace = pace
        self._chunk = _READ_BYTES if pace.bytes_per_s is None else max(64, min(4096, int(pace.bytes_per_s / 8)))
        self._sock = _connect(address, pace.small_buffer, connect_s)
        if pace == ReadPace():
            kernel_timestamps.enable(self._sock)
        self._tls: TlsFilter | None = None
        self._loop = get_hub().loop
        self._watcher: Any = self._loop.io(self._sock.fileno(), _READABLE)
        self._timer: Any = None
        self._ended: tuple[TransportEnd, str] | None = None
        self._body_until_close = False
        self._keeps_alive = False
        self.idle_since_ns = 0
        if address.ssl_context is not None:
            try:
                self._handshake(TlsFilter(address.ssl_context, address.host), connect_s)
            except (OSError, ssl.SSLError) as error:
                self.close()
                raise ConnectionFailed(TransportEnd.TLS, str(error)) from None

    def send(self, payload: bytes, timeout_s: float) -> None:
        """Write all of it. Raises OSError (TimeoutError, too)."""
        self._write(self._tls.encrypt(payload) if self._tls is not None else payload, timeout_s)

    def receive(self, handler: ResponseHandler, deadlines: Deadlines) -> tuple[TransportEnd, str]:
        """Pass the response to `handler` until it ends. Returns how it ended, and a detail."""
        self._handler = handler
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body_until_close = self._keeps_alive = False
        self._ended = None
        self._finished = Event()
        self._failure: BaseException | None = None
        self._began_ns = self._last_ns = perf_counter_ns()
        self._has_bytes = False
        self._watcher.start(self._readable)
        try:
            while self._ended is None:
                left_ns, end = self._next_timeout(deadlines)
                if left_ns <= 0:
                    self._finish(end, "")
                elif self._finished.wait(left_ns / 1e9):
                    break
        finally:
            self._stop()
        if self._failure is not None:
            raise self._failure
        assert self._ended is not None
        return self._ended

    @property
    def is_reusable(self) -> bool:
        """Whether the next request may use the connection."""
        return self._keeps_alive and self._pace == ReadPace()

    def is_alive(self) -> bool:
        """Whether the server has sent nothing, not even a FIN, since the last response."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._stop()
        self._watcher.close()
        self._sock.close()

    # For the handler, from within `on_body`.

    def abort(self) -> None:
        """Read nothing more; `receive` returns."""
        self._finish(TransportEnd.ABORTED, "")

    def pause(self, seconds: float) -> None:
        """Read nothing from the socket for that long."""
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
            self._finish(TransportEnd.CLOSED, "")

    def _read(self) -> None:
        try:
            data, self._arrived_ns = kernel_timestamps.receive(self._sock, self._chunk)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(TransportEnd.RESET, str(error))
            return
        self._last_ns = perf_counter_ns()
        closed = not data
        if data and self._tls is not None:
            data, closed = self._tls.decrypt(data)
        if data:
            if not self._has_bytes:
                self._has_bytes = True
                self._handler.on_first_byte(self._arrived_ns)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                self._finish(TransportEnd.CLOSED, f"not HTTP/1.1: {error}")
        if closed:
            self._finish(
                TransportEnd.COMPLETE if self._body_until_close else TransportEnd.CLOSED,
                "the server closed the connection",
            )
        elif self._pace.bytes_per_s is not None and self._timer is None:
            self.pause(len(data) / self._pace.bytes_per_s)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        self._body_until_close = not framed and status not in {204, 304}
        self._handler.on_head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._ended is None:
            self._handler.on_body(self._arrived_ns, data)

    def on_message_complete(self) -> None:
        # The parser has this only at the end of the message.
        self._keeps_alive = self._ended is None and not self._body_until_close and self._parser.should_keep_alive()
        self._finish(TransportEnd.COMPLETE, "")

    # Internals.

    def _next_timeout(self, deadlines: Deadlines) -> tuple[int, TransportEnd]:
        """Nanoseconds to the next timeout, and the end that it would be."""
        limits = [(deadlines.deadline_ns, TransportEnd.DEADLINE)]
        if deadlines.abort_ns is not None:
            limits.append((deadlines.abort_ns, TransportEnd.ABORTED))
        if not self._has_bytes:
            limits.append((self._began_ns + int(deadlines.first_byte_s * 1e9), TransportEnd.TIMEOUT_FIRST))
        elif self._timer is None:
            limits.append((self._last_ns + int(deadlines.idle_s * 1e9), TransportEnd.TIMEOUT_IDLE))
        else:
            # The client itself does not read; check again later.
            limits.append((perf_counter_ns() + int(deadlines.idle_s * 1e9), TransportEnd.TIMEOUT_IDLE))
        at_ns, end = min(limits, key=lambda limit: limit[0])
        return at_ns - perf_counter_ns(), end

    def _finish(self, end: TransportEnd, detail: str) -> None:
        if self._ended is None:
            self._ended = (end, detail)
            self._stop()
            self._finished.set()

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

    def _handshake(self, tls: TlsFilter, timeout_s: float) -> None:
        received = b""
        while True:
            done, payload = tls.handshake_step(received)
            self._write(payload, timeout_s)
            if done:
                self._tls = tls
                return
            gevent.socket.wait_read(self._sock.fileno(), timeout=timeout_s)
            received = self._sock.recv(_READ_BYTES)
            if not received:
                raise ConnectionResetError("closed during the handshake")


def _connect(address: Address, small_buffer: bool, timeout_s: float) -> socket.socket:
    """A plain non-blocking socket, even where gevent has patched the socket module."""
    problem = "no address"
    try:
        places = gevent.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectionFailed(TransportEnd.CONNECT, str(error)) from None
    for family, kind, protocol, _, place in places:
        sock = gevent.socket.socket(family, kind, protocol)
        try:
            if small_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
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
    raise ConnectionFailed(TransportEnd.CONNECT, problem)
