"""Requests with the keys that the two servers accept."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.support import stream_client
from tests.support.stream_client import Answer

ANNA, BERT = ({"Authorization": f"Bearer sk-{name}"} for name in ("anna", "bert"))
KEYS = "".join(f"{name}:{hashlib.sha256(f'sk-{name}'.encode()).hexdigest()}\n" for name in ("anna", "bert"))
"""What `server.api_keys_file` holds."""


async def ask(
    port: int,
    body: dict[str, Any],
    *,
    caller: dict[str, str] = ANNA,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> Answer:
    """As `stream_client.ask`."""
    return await stream_client.ask(port, body, headers={**caller, **(headers or {})}, **more)


async def connect(
    port: int, body: dict[str, Any], *, headers: dict[str, str] | None = None, **more: Any
) -> stream_client.Connection:
    """As `stream_client.Connection.open`."""
    return await stream_client.Connection.open(port, body, headers={**ANNA, **(headers or {})}, **more)


__all__ = ["ANNA", "BERT", "KEYS", "ask", "connect"]
