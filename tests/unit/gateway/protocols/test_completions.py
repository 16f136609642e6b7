from __future__ import annotations

from typing import Any

import orjson

from gateway.domain import Delta, Endpoint, OutputPart
from gateway.protocols.completions import COMPLETIONS
from tests.support.engine import chunk_template


def documents(parts: list[OutputPart], **template: Any) -> list[dict[str, Any]]:
    """The stream of `parts`, each encoded by itself."""
    encoder = COMPLETIONS.encoder(chunk_template(Endpoint.COMPLETION, **template))
    return [orjson.loads(document) for part in parts for document in encoder.encode([part])]


def test_a_completion_has_no_role() -> None:
    first, last = documents([Delta("Hi", 1), Delta("!", 1, "length")])

    assert first["choices"][0]["text"] == "Hi"
    assert last["choices"][0]["text"] == "!"
    assert last["choices"][0]["finish_reason"] == "length"
