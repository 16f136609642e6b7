"""The client of `frontend`, a process of its own: `python -m loadtest.bench.load_client [--lazy] PORT STREAMS TOKENS
[HEADER ...]`.

Opens STREAMS connections at once, requests TOKENS tokens on each, and prints one JSON object. It looks only for event
boundaries, because a client that parses would cost more than the servers that it measures; it checks that every stream
ends with `[DONE]`. Its own load is printed as `client_busy`, a share of one CPU.

Lazy, it leaves the bytes after the first token of 15 of 16 streams in the kernel until 8 KiB have come (SO_RCVLOWAT),
as a client on another machine would take that work off the server's: where engine and client share a CPU, a client that
wakes for every token would dominate the measurement. Gaps are then those of the other streams.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import time
from typing import Any

import uvloop

from loadtest.bench.client import chat_body, quantile
from loadtest.bench.servers import MODEL

DONE = b"data: [DONE]"
LAZY_BYTES = 8192
EAGER_EVERY = 16


class Stream(asyncio.Protocol):
    """One request. `gaps_s` are the times between reads that brought events."""

    def __init__(self, request: bytes, closed: asyncio.Future[None], lazy: bool) -> None:
        self._request = request
        self._lazy = lazy
        self._closed = closed
        self._events = 0
        self._last_s = 0.0
        self._tail = b""
        self.sent_s = 0.0
        self.ttft_s = 0.0
        self.gaps_s: list[float] = []
        self.done = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.sent_s = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        events = data.count(b"data: ")
        if not events:
            return
        now = time.perf_counter()
        # The first event of a chat is the role, which some servers send with the first token and some before.
        if self._events + events >= 2:
            if not self.ttft_s:
                self.ttft_s = now - self.sent_s
                if self._lazy:
                    sock = self._transport.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LAZY_BYTES)
            elif not self._lazy:
                self.gaps_s.append(now - self._last_s)
            self._last_s = now
        self._events += events
        if DONE in self._tail + data:
            self.done = True
            self._transport.close()
        self._tail = data[-len(DONE) :]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)


async def run(port: int, streams: int, tokens: int, headers: list[str], lazy: bool) -> dict[str, float]:
    """All streams once. Raises SystemExit if one did not end with `[DONE]`."""
    body = chat_body(MODEL, tokens)
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: bench", "Content-Type: application/json", *headers]
    # The end of a lazy stream may stay below the mark; it is read when the server closes.
    lines.append("Connection: close")
    request = "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body
    loop = asyncio.get_running_loop()
    lefts: list[asyncio.Future[None]] = []

    def make() -> Stream:
        lefts.append(loop.create_future())
        return Stream(request, lefts[-1], lazy and len(lefts) % EAGER_EVERY != 1)

    began, cpu = time.perf_counter(), time.process_time()
    opened = await asyncio.gather(*[loop.create_connection(make, "127.0.0.1", port) for _ in range(streams)])
    await asyncio.gather(*lefts)
    elapsed_s, busy_s = time.perf_counter() - began, time.process_time() - cpu
    samples = [protocol for _, protocol in opened]
    if not all(sample.done for sample in samples):
        raise SystemExit(f"{sum(not sample.done for sample in samples)} of {streams} streams did not end with [DONE]")
    ttfts = [sample.ttft_s for sample in samples]
    gaps = [gap for sample in samples for gap in sample.gaps_s] or [0.0]
    return {
        "tokens": streams * tokens,
        "elapsed_s": elapsed_s,
        "tokens_per_s": streams * tokens / elapsed_s,
        "client_busy": busy_s / elapsed_s,
        "ttft_p50_ms": quantile(ttfts, 0.5) * 1e3,
        "ttft_p99_ms": quantile(ttfts, 0.99) * 1e3,
        "itl_p50_ms": quantile(gaps, 0.5) * 1e3,
        "itl_p99_ms": quantile(gaps, 0.99) * 1e3,
        "itl_max_ms": max(gaps) * 1e3,
    }


def main() -> None:
    gc.disable()
    words = [word for word in sys.argv[1:] if word != "--lazy"]
    port, streams, tokens = (int(word) for word in words[:3])
    print(json.dumps(uvloop.run(run(port, streams, tokens, words[3:], "--lazy" in sys.argv))))


if __name__ == "__main__":
    main()
