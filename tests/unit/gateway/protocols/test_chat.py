from __future__ import annotations

from typing import Any

import orjson

from gateway.domain import Delta, Endpoint, OutputPart
from gateway.protocols.chat import CHAT
from tests.support.engine import chunk_template


def documents(parts: list[OutputPart], **template: Any) -> list[dict[str, Any]]:
    """The stream of `parts`, each encoded by itself."""
    encoder = CHAT.encoder(chunk_template(Endpoint.CHAT, **template))
    return [orjson.loads(document) for part in parts for document in encoder.encode([part])]


def content(stream: list[dict[str, Any]]) -> str:
    """What a client that concatenates gets to read."""
    choices = [choice for document in stream for choice in document["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def test_a_chat_begins_with_its_role() -> None:
    first, second, last = documents([Delta("Hi", 1), Delta("!", 1, "stop")])

    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert second["choices"][0]["delta"] == {"content": "Hi"}
    assert second["choices"][0]["finish_reason"] is None
    assert last["choices"][0] == {
        "index": 0,
        "delta": {"content": "!"},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": None,
    }
