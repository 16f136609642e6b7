"""A client of the mock over a raw socket, byte by byte."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.support.server import Raw, request_bytes

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Json = dict[str, Any]


@dataclass
class Answer:
    """The bytes until the connection ended; `events` are the data of the events."""

    status: int
    head: str
    body: bytes
    complete: bool
    reset: bool

    @property
    def events(self) -> list[bytes]:
        return [part.rpartition(b"data: ")[2] for part in self.body.split(b"\n\n") if part]

    @property
    def documents(self) -> list[Json]:
        return [json.loads(event) for event in self.events if event != b"[DONE]"]

    @property
    def text(self) -> str:
        return "".join(
            choice.get("delta", {}).get("content") or choice.get("text") or ""
            for document in self.documents
            for choice in document.get("choices", [])
        )

    @property
    def finishes(self) -> list[str]:
        choices = [choice for document in self.documents for choice in document.get("choices", [])]
        return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def begin(port: int, path: str = TEXT, headers: dict[str, str] | None = None, **body: Any) -> Raw:
    """Send a request with `Connection: close`."""
    document = {"stream": True, "max_tokens": 8, "stream_options": {"include_usage": True}}
    document |= (
        {"messages": [{"role": "user", "content": "one two three"}]} if path == CHAT else {"prompt": [300, 1, 2]}
    )
    return Raw(port, request_bytes(document | body, path, {"Connection": "close", **(headers or {})}))


def finish(raw: Raw) -> Answer:
    """Read to the end."""
    reset = False
    try:
        raw.read_all()
    except ConnectionResetError:
        reset = True
    raw.close()
    head, _, rest = raw.seen.partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head else 0
    if b"transfer-encoding: chunked" not in head:
        return Answer(status, head.decode(), rest, True, reset)
    body, complete = b"", False
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            complete = True
            assert rest == b"\r\n"
            break
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return Answer(status, head.decode(), body, complete, reset)


def request(port: int, path: str = TEXT, headers: dict[str, str] | None = None, **body: Any) -> Answer:
    return finish(begin(port, path, headers, **body))


def request_with_fault(port: int, kind: str, path: str = TEXT, **fault: Any) -> Answer:
    """The answer to a request that asks for a fault."""
    return request(port, path, {"X-Mock-Fault": json.dumps({"kind": kind, **fault})})
