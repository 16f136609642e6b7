"""What vLLM believes of any client, and should not.

These headers and body fields steer the scheduler, the data-parallel router and the KV connector. Behind a router of
one's own they are useful; from the open network they let one client push others back or read another's cache. They
are removed unless the settings say that clients are trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import orjson

from gateway.engine.base import ASGIApp
from gateway.errors import ClientError

FIELDS = frozenset(
    {
        "priority",
        "data_parallel_rank",
        "kv_transfer_params",
        "ec_transfer_params",
        "kv_hints",
        "vllm_xargs",
        "cache_salt",
        "session_id",
        "request_id",
    }
)
HEADERS = frozenset({"x-vllm-priority", "x-data-parallel-rank", "x-session-id", "x-request-id"})


class Headers(dict[str, str]):
    """Header look-up without regard to case, as vLLM's code expects of a request's headers. Keys are lower case."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.lower(), default)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(key.lower())

    def __getitem__(self, key: str) -> str:
        return super().__getitem__(key.lower())


class Screen:
    """Removes trusted fields and headers, or lets them through."""

    def __init__(self, trust: bool) -> None:
        self._trust = trust

    def body(self, document: dict[str, Any]) -> None:
        """Remove the fields from a parsed body, in place."""
        if not self._trust:
            for name in FIELDS & document.keys():
                del document[name]

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers that may pass; keys are lower case."""
        if self._trust:
            return headers
        return {name: value for name, value in headers.items() if name not in HEADERS}

    def app(self, inner: ASGIApp) -> ASGIApp:
        """Put the screen in front of vLLM's own app."""
        if self._trust:
            return inner

        async def screened(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in HEADERS]
            if not _is_json(kept):
                await inner({**scope, "headers": kept}, receive, send)
                return
            body = self._cleaned(await _read(receive))
            kept = [(name, value) for name, value in kept if name not in (b"content-length", b"transfer-encoding")]
            kept.append((b"content-length", b"%d" % len(body)))
            await inner({**scope, "headers": kept}, _replay(body, receive), send)

        return screened

    def _cleaned(self, body: bytes) -> bytes:
        # Clients name the content type on requests without a body, too.
        document = read_json(body) if body else None
        if not isinstance(document, dict) or not FIELDS & document.keys():
            return body
        self.body(document)
        return orjson.dumps(document)


def read_json(body: bytes) -> Any:
    """The document in a request body. Raises ClientError that says where it is broken."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ClientError(f"The request body is not valid JSON: {error.msg} (at byte {error.pos}).") from None


def _is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in headers)


async def _read(receive: Any) -> bytes:
    """The whole body; its size is bounded where it enters the process. A client that left yields what it sent."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Any) -> Any:
    pending: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return pending.pop() if pending else await receive()

    return replay


__all__ = ["FIELDS", "HEADERS", "Headers", "Screen", "read_json"]
