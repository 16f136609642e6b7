"""The errors of vLLM's failing streams and of its validation, as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from pydantic import TypeAdapter, ValidationError

from gateway import errors
from gateway.domain import Cause, RequestStats
from gateway.errors import SluiceError

pytestmark = pytest.mark.usefixtures("stats")

Make = Callable[[Any], Exception]


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
def state(parts: Any) -> Any:
    found = SimpleNamespace(
        anthropic_serving_messages=made(parts.AnthropicServingMessages),
        cohere_serving_chat_v2=Cohere(),
        openai_serving_responses=made(parts.OpenAIServingResponses),
        openai_serving_chat=made(parts.OpenAIServingChat),
    )
    parts.stream_errors.install_stream_errors(found)
    return found


def a_validation_error() -> ValidationError:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(list[int]).validate_python(["my secret prompt"])
    return raised.value


LEAKS = ("validation error", "ChatCompletionStreamResponse", "pydantic", "secret", "Traceback", "NoneType", "stream.py")


def clean(text: str) -> None:
    assert not [leak for leak in LEAKS if leak in text], text


def raised(error: Exception) -> Exception:
    """The same with a place."""
    try:
        raise error
    except Exception as placed:
        return placed


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda v: v.proxy.CancelledById(), "cancelled"),
        (lambda v: v.proxy.AbortedByEngine(), "engine_failed"),
        (lambda v: v.EngineDeadError(), "engine_failed"),
        (lambda v: v.VLLMValidationError("top_k is too large", parameter="top_k"), "invalid_request"),
        (lambda v: v.VLLMNotFoundError("no such thing"), "not_found"),
        (lambda _: ValueError("The prompt is too long."), "invalid_request"),
        (lambda _: a_validation_error(), "internal_error"),
        (lambda _: TypeError("'NoneType' object is not subscriptable"), "internal_error"),
        (lambda _: UnicodeDecodeError("utf-8", b"my secret", 0, 1, "x"), "internal_error"),
        (lambda _: RuntimeError("my secret"), "internal_error"),
    ],
)
def test_an_exception_in_a_stream_becomes_the_right_error(parts: Any, state: Any, make: Make, code: str) -> None:
    serving = state.openai_serving_chat
    written = orjson.loads(serving.create_streaming_error_response(raised(make(parts))))

    assert written["error"]["code"] == code
    clean(written["error"]["message"])
    assert parts.stream_errors.from_event(written["error"]).code == code


def test_a_recorded_cause_of_the_end_wins(parts: Any, state: Any, stats: RequestStats) -> None:
    stats.end(Cause.CANCELLED)
    serving = state.openai_serving_chat

    assert orjson.loads(serving.create_streaming_error_response(RuntimeError("x")))["error"]["code"] == "cancelled"
    assert parts.stream_errors.from_event({"code": 500, "message": "x"}).code == "cancelled"


def test_a_failed_generation_is_an_event_for_chats_and_raised_for_responses(parts: Any, state: Any) -> None:
    serving = state.openai_serving_chat
    event = orjson.loads(serving._convert_generation_error_to_streaming_response(parts.GenerationError("Internal")))

    assert event["error"]["code"] == "internal_error"
    with pytest.raises(SluiceError) as failed:
        state.openai_serving_responses._convert_generation_error_to_streaming_response(
            parts.GenerationError("Internal")
        )
    assert failed.value.code == "engine_failed"


def test_every_error_of_ours_is_read_as_what_it_was(parts: Any) -> None:
    for kind in parts.stream_errors._BY_CODE.values():
        found = parts.stream_errors.from_event(kind("Because.", param="p").body()["error"])

        assert (type(found), found.message, found.param) == (kind, "Because.", "p")


def test_vllms_own_errors_are_read_by_their_status(parts: Any) -> None:
    read = parts.stream_errors.from_event

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
        (lambda v: v.proxy.CancelledById(), "invalid_request_error"),
        (lambda v: v.EngineDeadError(), "api_error"),
        (lambda v: v.VLLMValidationError("top_k is too large"), "invalid_request_error"),
        (lambda _: a_validation_error(), "api_error"),
    ],
)
def test_a_failed_message_ends_with_anthropics_error_event(
    parts: Any, state: Any, begun: bool, make: Make, kind: str
) -> None:
    serving = state.anthropic_serving_messages
    before = [chunk(""), chunk("Hel")] if begun else []
    *events, last = collected(
        serving.message_stream_converter(chat(*before, failure(serving, raised(make(parts))), "data: [DONE]\n\n"))
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


def test_a_whole_message_is_converted_as_before(parts: Any, state: Any) -> None:
    items = (chunk(""), chunk("Hello"), "data: [DONE]\n\n")
    ours = collected(state.anthropic_serving_messages.message_stream_converter(chat(*items)))
    theirs = collected(made(parts.AnthropicServingMessages).message_stream_converter(chat(*items)))

    assert [event.split("\n")[0] for event in ours] == [event.split("\n")[0] for event in theirs]
    assert ours[-1] == theirs[-1]


@pytest.mark.parametrize("make", [lambda v: v.proxy.CancelledById(), lambda _: a_validation_error()])
def test_a_failed_cohere_chat_ends_with_an_error(parts: Any, state: Any, make: Make) -> None:
    items = (chunk(""), failure(state.openai_serving_chat, raised(make(parts))), "data: [DONE]\n\n")
    text = "".join(collected(state.cohere_serving_chat_v2._chat_completion_stream_to_v2(chat(*items), None)))

    assert '"finish_reason":"ERROR"' in text
    assert "[DONE]" not in text
    clean(text)


# What vLLM says of wrong bodies, through the contract.


def answer(status: int, document: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps(document)})

    return app


def refused(parts: Any, app: Any) -> SluiceError:
    with pytest.raises(SluiceError) as found:
        asyncio.run(
            parts.error_normalizer.normalize_errors(app, lambda: None)({"type": "http", "path": "/x"}, None, None)
        )
    return found.value


def test_pydantics_words_do_not_reach_clients(parts: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        parts.ChatCompletionRequest.model_validate({"messages": [], "temperature": "my secret"})
    message = str(raised.value)
    body = {"type": "error", "error": {"type": "BadRequestError", "message": message}}
    error = refused(parts, answer(400, body))

    assert "validation error" in message
    assert (error.status, error.anthropic_body("r")["error"]["type"]) == (400, "invalid_request_error")
    assert "temperature: " in error.message
    clean(error.message)
    assert "type=" not in error.message
    assert "errors.pydantic.dev" not in error.message


def test_a_problem_of_the_whole_body_names_no_field(parts: Any) -> None:
    text = (
        "1 validation error for X\n  Value error, max_tokens is needed [type=value_error, input_value={}]\n    For more"
    )

    assert refused(parts, answer(400, {"error": {"message": text, "code": 400}})).message == "max_tokens is needed"


def test_what_vllms_app_raises_becomes_the_right_error(parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise raised(a_validation_error())

    error = refused(parts, app)

    assert error.code == "internal_error"
    assert "ValidationError at " in caplog.text
    assert "secret" not in caplog.text
