"""Bodies of our two endpoints, read into vLLM's own request models."""

from __future__ import annotations

import warnings
from typing import Any

import orjson
import pytest

from gateway.domain import Endpoint
from gateway.engine.bounded_json import BodyLimits
from gateway.errors import ClientError

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def read() -> Any:
    """`read_request` with a small model's bounds. Importing it imports vLLM, which takes ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gateway.engine.vllm.http_app.document_reader import DocumentReader
        from gateway.engine.vllm.http_app.untrusted_fields import UntrustedFieldFilter
        from gateway.engine.vllm.request_models import read_request

    documents = DocumentReader(UntrustedFieldFilter(trust=False), BodyLimits(), 1000, 100)
    return lambda endpoint, **fields: read_request(endpoint, orjson.dumps(fields), documents)


@pytest.mark.parametrize(
    ("endpoint", "fields", "slots"),
    [
        (Endpoint.CHAT, {"messages": MESSAGES}, 1),
        (Endpoint.CHAT, {"messages": MESSAGES, "n": 3}, 3),
        (Endpoint.CHAT, {"messages": MESSAGES, "n": None}, 1),
        (Endpoint.COMPLETION, {"prompt": "a b"}, 1),
        (Endpoint.COMPLETION, {"prompt": [1, 2, 3]}, 1),
        (Endpoint.COMPLETION, {"prompt": ["a", "b"]}, 2),
        (Endpoint.COMPLETION, {"prompt": [[1, 2], [3], [4]], "n": 2}, 6),
    ],
)
def test_a_request_needs_a_slot_for_each_choice_of_each_prompt(
    read: Any, endpoint: Endpoint, fields: dict[str, Any], slots: int
) -> None:
    assert read(endpoint, model="m", **fields).slots == slots


@pytest.mark.parametrize("stream", [True, False, None])
def test_the_models_are_vllms_own(read: Any, stream: bool | None) -> None:
    chat = read(Endpoint.CHAT, messages=MESSAGES, stream=stream)
    completion = read(Endpoint.COMPLETION, prompt="x", stream=stream)

    assert type(chat.request).__name__ == "ChatCompletionRequest"
    assert type(completion.request).__name__ == "CompletionRequest"
    assert chat.stream is completion.stream is bool(stream)


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        (Endpoint.CHAT, {}, "messages"),
        (Endpoint.CHAT, {"messages": MESSAGES, "temperature": "hot"}, "temperature"),
        (Endpoint.COMPLETION, {"prompt": "x", "max_tokens": "many"}, "max_tokens"),
        (Endpoint.COMPLETION, {"prompt": [1] * 101}, "prompt"),
    ],
)
def test_a_wrong_field_is_named(read: Any, endpoint: Endpoint, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClientError) as refused:
        read(endpoint, **fields)

    assert (refused.value.status, refused.value.param) == (400, param)


def test_an_error_of_vllms_own_validators_is_the_clients(read: Any) -> None:
    with pytest.raises(ClientError):
        read(Endpoint.CHAT, messages=MESSAGES, top_logprobs=2, logprobs=False)
