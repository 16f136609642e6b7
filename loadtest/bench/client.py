"""A small raw HTTP client for benchmarks: one connection a stream, no parsing beyond the measurement.

A full HTTP library would cost more per token than the server does, and the client must not be the bottleneck.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(slots=True)
class Sample:
    """One stream as its client saw it; times are monotonic seconds."""

    sent_s: float = 0.0
    events_s: list[float] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    model: str

    @classmethod
    def from_url(cls, url: str, model: str) -> Target:
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, model)


def chat_body(model: str, max_tokens: int) -> bytes:
    """The body of a streamed chat that runs to exactly `max_tokens`."""
    document = {"model": model, "stream": True, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    document["messages"] = [{"role": "user", "content": "Tell me a story about a river."}]
    return json.dumps(document).encode()


async def open_stream(target: Target, max_tokens: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and send a streamed chat that runs to exactly `max_tokens`."""
    body = chat_body(target.model, max_tokens)
    reader, writer = await asyncio.open_connection(target.host, target.port, limit=2**20)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    return reader, writer


async def run_stream(target: Target, max_tokens: int) -> Sample:
    """Read a stream to its end and record when each event came."""
    sample = Sample(sent_s=time.monotonic())
    reader, writer = await open_stream(target, max_tokens)
    try:
        while data := await reader.read(2**16):
            now = time.monotonic()
            sample.events_s.extend([now] * data.count(b"data: "))
            if b"data: [DONE]" in data:
                sample.complete = True
                break
    finally:
        writer.close()
    return sample


def quantile(values: list[float], q: float) -> float:
    """The q-quantile by the nearest rank; `values` must not be empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
