"""HTTP/1.1 on one socket: reads requests, one at a time, and writes answers straight to the kernel.

A write through the event loop would leave at the end of its turn, after everything else that is due in it; the recorded
time of a token must be the moment at which it left.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter_ns
from typing import Protocol, cast

import httptools

from loadtest.mock.stream import Job

_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed", 413: b"Too Large"}
_REASONS |= {429: b"Too Many Requests", 500: b"Internal Server Error", 503: b"Service Unavailable"}
# No measurement has prompts beyond some hundred thousand tokens.
LIMIT_BYTES = 16 * 2**20


class RequestHandler(Protocol):
    """Receives the requests."""

    def on_request(self, connection: Connection, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """A whole request has arrived, at `connection.arrived_ns`."""

    def on_disconnect(self, connection: Connection) -> None:
        """The connection is closed, by either side."""


class Connection(asyncio.Protocol):
    """One client's. Its handler keeps the job that answers in `job`."""

    def __init__(self, handler: RequestHandler, accept_delay_s: Callable[[], float]) -> None:
        self._handler = handler
        self._accept_delay_s = accept_delay_s
        self._parser = httptools.HttpRequestParser(self)
        self._fd = -1
        self._is_answering = False
        self._keep_alive = True
        # Bytes that came before a delayed accept.
        self._early: list[bytes] | None = None
        self.arrived_ns = 0
        self.job: Job | None = None

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is no subclass.
        self._transport = cast("asyncio.Transport", transport)
        self._fd = transport.get_extra_info("socket").fileno()
        if delay_s := self._accept_delay_s():
            self._early = []
            asyncio.get_running_loop().call_later(delay_s, self._accept)

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._early.append(data)
            return
        self.arrived_ns = perf_counter_ns()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.answer(400, b'{"error":{"message":"This is not HTTP/1.1.","type":"invalid_request_error"}}')
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_gone()

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= LIMIT_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()
        method = self._parser.get_method().decode()
        if self._size > LIMIT_BYTES or self._is_answering:
            # A second request before the answer to the first: no measured client does that.
            self.answer(413 if self._size > LIMIT_BYTES else 400, b"{}")
            self.close()
            return
        self._is_answering = True
        path = self._url.partition(b"?")[0].decode("latin-1")
        self._handler.on_request(self, method, path, self._headers, b"".join(self._body))

    # Called by the handler.

    def answer(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = b"application/json") -> None:
        """Send the whole answer at once."""
        head = b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n"
        self.send(head % (status, _REASONS[status], kind, len(body), headers) + body)
        self.complete()

    def begin(self, headers: bytes) -> None:
        """Send the head of a streamed answer."""
        self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
            b"transfer-encoding: chunked\r\n%b\r\n" % headers
        )

    def send(self, payload: bytes) -> int:
        """Hand bytes to the kernel, or to the event loop if the kernel's buffer is full. Returns the time of that."""
        now_ns = perf_counter_ns()
        if self._fd < 0:
            return now_ns
        if self._transport.get_write_buffer_size():
            self._transport.write(payload)
            return now_ns
        try:
            written = os.write(self._fd, payload)
        except BlockingIOError:
            written = 0
        except OSError:
            # The peer has gone; the event loop has not noticed it yet.
            self._transport.abort()
            self._on_gone()
            return now_ns
        if written < len(payload):
            self._transport.write(payload[written:])
        return now_ns

    def complete(self) -> None:
        self._is_answering = False
        self.job = None
        if not self._keep_alive:
            self.close()

    def close(self) -> None:
        """Close once everything is written."""
        self._transport.close()
        self._on_gone()

    def abort(self, *, rst: bool) -> None:
        """Close now. An RST discards bytes that the client has not read yet."""
        if rst:
            with suppress(OSError):
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        self._on_gone()

    def _accept(self) -> None:
        early, self._early = self._early, None
        if early:
            self.data_received(b"".join(early))

    def _on_gone(self) -> None:
        # The number may soon be another socket's.
        self._fd = -1
        self._handler.on_disconnect(self)
