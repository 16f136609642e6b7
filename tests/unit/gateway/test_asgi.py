from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.asgi import read_body, wait_disconnect

PART = {"type": "http.request", "body": b"ab", "more_body": True}
EMPTY_PART = {"type": "http.request", "more_body": True}
END = {"type": "http.request", "body": b"c"}
DISCONNECT = {"type": "http.disconnect"}


def receiving(*messages: dict[str, Any]) -> Any:
    pending = list(messages)

    async def receive() -> dict[str, Any]:
        return pending.pop(0)

    return receive


@pytest.mark.parametrize(
    ("messages", "body"),
    [([END], b"c"), ([PART, EMPTY_PART, PART, END], b"ababc"), ([PART, DISCONNECT], None), ([DISCONNECT], None)],
)
def test_a_body_is_read_to_its_end_or_to_the_disconnect(messages: list[dict[str, Any]], body: bytes | None) -> None:
    assert asyncio.run(read_body(receiving(*messages))) == body


def test_messages_before_the_disconnect_are_ignored() -> None:
    asyncio.run(wait_disconnect(receiving(END, DISCONNECT)))
