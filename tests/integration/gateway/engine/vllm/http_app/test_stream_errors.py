"""Errors in vLLM's streams that have begun, with vLLM's own serving objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.exceptions import GenerationError, VLLMNotFoundError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from gateway import errors
from gateway.domain import Cause, RequestStats
from gateway.engine.vllm.http_app import proxy, stream_errors
from gateway.errors import SluiceError
from tests.integration.gateway.engine.vllm.http_app.failures import a_validation_error, clean, raised

Make = Callable[[], Exception]


def made(kind: type) -> Any:
    return object.__new__(kind)


class Cohere:
    """As vLLM's converter to Cohere's protocol, whose types come with a package that is not installed here."""

    async def _chat_completion_stream_to_v2(self, chunks: AsyncIterator[str], request: Any) -> AsyncIterator[str]:
        try:
            async for item in chunks:
                yield item
        except Exception as error:
            yield orjson.dumps({"error": str(error), "finish_reason": "ERROR"}).decode()


@pytest.fixture
def state() -> Any:
    found = SimpleNamespace(
        anthropic_serving_messages=made(AnthropicServingMessages),
        cohere_serving_chat_v2=Cohere(),
        openai_serving_responses=made(OpenAIServingResponses),
        openai_serving_chat=made(OpenAIServingChat),
    )
    stream_errors.install_stream_errors(found)
    return found


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (proxy.CancelledById, "cancelled"),
        (proxy.AbortedByEngine, "engine_failed"),
        (EngineDeadError, "engine_failed"),
        (lambda: VLLMValidationError("top_k is too large", parameter="top_k"), "invalid_request"),
        (lambda: VLLMNotFoundError("no such thing"), "not_found"),
        (lambda: ValueError("The prompt is too long."), "invalid_request"),
        (a_validation_error, "internal_error"),
        (lambda: TypeError("'NoneType' object is not subscriptable"), "internal_error"),
        (lambda: UnicodeDecodeError("utf-8", b"my secret", 0, 1, "x"), "internal_error"),
        (lambda: RuntimeError("my secret"), "internal_error"),
    ],
)
def test_an_exception_in_a_stream_becomes_the_right_error(state: Any, make: Make, code: str) -> None:
    serving = state.openai_serving_chat
    written = orjson.loads(serving.create_streaming_error_response(raised(make())))

    assert written["error"]["code"] == code
    clean(written["error"]["message"])
    assert stream_errors.from_event(written["error"]).code == code


def test_a_recorded_cause_of_the_end_wins(state: Any, stats: RequestStats) -> None:
    stats.end(Cause.CANCELLED)
    serving = state.openai_serving_chat

    assert orjson.loads(serving.create_streaming_error_response(RuntimeError("x")))["error"]["code"] == "cancelled"
    assert stream_errors.from_event({"code": 500, "message": "x"}).code == "cancelled"


def test_a_failed_generation_is_an_event_for_chats_and_raised_for_responses(state: Any) -> None:
    serving = state.openai_serving_chat
    event = orjson.loads(serving._convert_generation_error_to_streaming_response(GenerationError("Internal")))

    assert event["error"]["code"] == "internal_error"
    with pytest.raises(SluiceError) as failed:
        state.openai_serving_responses._convert_generation_error_to_streaming_response(GenerationError("Internal"))
    assert failed.value.code == "engine_failed"


def test_every_error_of_ours_is_read_as_what_it_was() -> None:
    for kind in stream_errors._BY_CODE.values():
        found = stream_errors.from_event(kind("Because.", param="p").body()["error"])

        assert (type(found), found.message, found.param) == (kind, "Because.", "p")


def test_vllms_own_errors_are_read_by_their_status() -> None:
    read = stream_errors.from_event

    assert read({"code": 400, "message": "x", "param": "y"}).status == 400
    assert isinstance(read({"code": 404, "message": "x"}), errors.NotFound)
    assert isinstance(read({"message": "my secret"}), errors.InternalError)


# Converters to other protocols.


def chunk(text: str) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return f"data: {orjson.dumps({'id': 'chatcmpl-1', 'model': 'm', 'created': 1, 'choices': [choice]}).decode()}\n\n"


async def chat(*items: str) -> AsyncGenerator[str, None]:
    for item in items:
        yield item


def collected(events: AsyncIterator[str]) -> list[str]:
    async def run() -> list[str]:
        return [event async for event in events]

    return asyncio.run(run())


def failure(serving: Any, error: Exception) -> str:
    return f"data: {serving.create_streaming_error_response(error)}\n\n"


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (proxy.CancelledById, "invalid_request_error"),
        (EngineDeadError, "api_error"),
        (lambda: VLLMValidationError("top_k is too large"), "invalid_request_error"),
        (a_validation_error, "api_error"),
    ],
)
def test_a_failed_message_ends_with_anthropics_error_event(state: Any, begun: bool, make: Make, kind: str) -> None:
    serving = state.anthropic_serving_messages
    before = [chunk(""), chunk("Hel")] if begun else []
    *events, last = collected(
        serving.message_stream_converter(chat(*before, failure(serving, raised(make())), "data: [DONE]\n\n"))
    )
    name, data = last.removesuffix("\n\n").split("\n")
    body = orjson.loads(data.removeprefix("data: "))

    assert name == "event: error"
    assert (body["type"], body["error"]["type"], body["request_id"]) == ("error", kind, "req-1")
    assert body["error"].keys() == {"type", "message"}
    clean(last)
    assert [event.split("\n")[0] for event in events] == (
        ["event: message_start", "event: content_block_start", "event: content_block_delta"] if begun else []
    )


@pytest.mark.parametrize("broken", ["data: {}\n\n", "data: not json my secret\n\n", "nonsense"])
def test_a_converters_own_exception_does_not_reach_the_client(state: Any, broken: str) -> None:
    events = collected(state.anthropic_serving_messages.message_stream_converter(chat(chunk(""), broken)))

    assert orjson.loads(events[-1].split("data: ")[1])["error"]["type"] == "api_error"
    clean("".join(events))


def test_a_whole_message_is_converted_as_before(state: Any) -> None:
    items = (chunk(""), chunk("Hello"), "data: [DONE]\n\n")
    ours = collected(state.anthropic_serving_messages.message_stream_converter(chat(*items)))
    theirs = collected(made(AnthropicServingMessages).message_stream_converter(chat(*items)))

    assert [event.split("\n")[0] for event in ours] == [event.split("\n")[0] for event in theirs]
    assert ours[-1] == theirs[-1]


@pytest.mark.parametrize("make", [proxy.CancelledById, a_validation_error])
def test_a_failed_cohere_chat_ends_with_an_error(state: Any, make: Make) -> None:
    items = (chunk(""), failure(state.openai_serving_chat, raised(make())), "data: [DONE]\n\n")
    text = "".join(collected(state.cohere_serving_chat_v2._chat_completion_stream_to_v2(chat(*items), None)))

    assert '"finish_reason":"ERROR"' in text
    assert "[DONE]" not in text
    clean(text)
