"""A client for thousands of streams: raw sockets, one connection a stream, texts checked token by token."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from tests.support.deterministic_text import expected_text

COMPLETIONS = "/v1/completions"
PROMPT_TAIL = [301, 302]


def prompt(first: int) -> list[int]:
    """A prompt whose answer depends on its first token."""
    return [300 + first % 800, *PROMPT_TAIL, 300 + first // 800]


def completion(first: int, tokens: int, **more: Any) -> dict[str, Any]:
    """A streamed completion of exactly this many tokens."""
    return {
        "model": "sluice-demo",
        "prompt": prompt(first),
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        **more,
    }


@dataclass
class Answer:
    """The answer on one connection; `arrivals_s` holds the time of every read that had a token in it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    """Whether the HTTP body was complete, which a broken connection's is not."""
    sent_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The JSON documents of complete events."""
        lines = [line[6:] for line in self._lines() if line.startswith(b"data: ") and line != b"data: [DONE]"]
        return [json.loads(line) for line in lines]

    @property
    def done(self) -> bool:
        """Whether `[DONE]` has come."""
        return b"\ndata: [DONE]\n\n" in b"\n" + self.body

    @property
    def text(self) -> str:
        """The text of all choices."""
        choices = [choice for document in self.documents for choice in document.get("choices", [])]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)

    @property
    def finish(self) -> list[str]:
        """All finish reasons."""
        choices = [choice for document in self.documents for choice in document.get("choices", [])]
        return [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]

    @property
    def error(self) -> dict[str, Any] | None:
        """The in-band error, if there is one."""
        return next((document["error"] for document in self.documents if "error" in document), None)

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two reads that had tokens."""
        return max((b - a for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)), default=0.0)

    @property
    def ids(self) -> list[int]:
        """The numbers of complete events."""
        return [int(line[4:]) for line in self._lines() if line.startswith(b"id: ")]

    def _lines(self) -> list[bytes]:
        complete, _, _ = self.body.rpartition(b"\n\n")
        return complete.split(b"\n")

    def exact(self, first: int, tokens: int) -> bool:
        """Whether this is the whole of `completion(first, tokens)`: every token once, one ending, then `[DONE]`."""
        return (
            self.whole and self.done and self.finish == ["length"] and self.text == expected_text(prompt(first), tokens)
        )


class Connection:
    """One request on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answer = Answer(sent_s=time.monotonic())

    @classmethod
    async def open(
        cls,
        port: int,
        body: dict[str, Any] | None,
        *,
        method: str = "POST",
        path: str = COMPLETIONS,
        headers: dict[str, str] | None = None,
    ) -> Connection:
        """Connect and send."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        payload = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: faults", "Content-Type: application/json", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines.append(f"Content-Length: {len(payload)}")
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
        await writer.drain()
        return cls(reader, writer)

    async def head(self) -> Answer:
        """Read the status line and headers."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = raw.decode("latin-1").split("\r\n")
        self.answer.status = int(status.split()[1])
        self.answer.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)
        }
        return self.answer

    async def chunk(self) -> bytes:
        """The next piece of the body; empty at its end or at the connection's, see `Answer.whole`."""
        answer = self.answer
        if "chunked" not in answer.headers.get("transfer-encoding", ""):
            data = await self.reader.read(-1)
            answer.body += data
            answer.whole = len(answer.body) == int(answer.headers.get("content-length", -1))
            return b""
        try:
            size = int(await self.reader.readline() or b"x", 16)
            data = (await self.reader.readexactly(size + 2))[:-2]
        except (ValueError, asyncio.IncompleteReadError, ConnectionError):
            return b""
        answer.body += data
        answer.whole = size == 0
        if b"data: {" in data:
            answer.arrivals_s.append(time.monotonic())
        return data

    async def rest(self) -> Answer:
        """Read everything to the end."""
        try:
            if not self.answer.status:
                await self.head()
            while await self.chunk():
                pass
        finally:
            self.writer.close()
        return self.answer


async def ask(port: int, body: dict[str, Any], **options: Any) -> Answer:
    """Send a request and read its whole answer."""
    return await (await Connection.open(port, body, **options)).rest()
