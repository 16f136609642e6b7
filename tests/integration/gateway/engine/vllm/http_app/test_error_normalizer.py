"""Error responses, exceptions and stream headers of vLLM's app."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.sampling_params import SamplingParams

from gateway.clock import SystemClock
from gateway.domain import RequestStats
from gateway.engine.vllm.http_app.error_normalizer import normalize_errors
from gateway.engine.vllm.http_app.proxy import EngineProxy
from gateway.engine.vllm.http_app.running_requests import RunningRequests
from gateway.errors import SluiceError
from tests.integration.gateway.engine.vllm.http_app.failures import a_validation_error, clean, raised


def answer(status: int, document: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps(document)})

    return app


def refused(app: Any) -> SluiceError:
    with pytest.raises(SluiceError) as found:
        asyncio.run(normalize_errors(app, lambda: None)({"type": "http", "path": "/x"}, None, None))
    return found.value


def test_pydantics_messages_do_not_reach_clients() -> None:
    with pytest.raises(ValidationError) as raised:
        ChatCompletionRequest.model_validate({"messages": [], "temperature": "my secret"})
    message = str(raised.value)
    body = {"type": "error", "error": {"type": "BadRequestError", "message": message}}
    error = refused(answer(400, body))

    assert "validation error" in message
    assert (error.status, error.anthropic_body("r")["error"]["type"]) == (400, "invalid_request_error")
    assert "temperature: " in error.message
    clean(error.message)
    assert "type=" not in error.message
    assert "errors.pydantic.dev" not in error.message


def test_a_problem_of_the_whole_body_has_no_field() -> None:
    text = (
        "1 validation error for X\n  Value error, max_tokens is needed [type=value_error, input_value={}]\n    For more"
    )

    assert refused(answer(400, {"error": {"message": text, "code": 400}})).message == "max_tokens is needed"


def test_an_exception_of_vllms_app_becomes_the_right_error(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise raised(a_validation_error())

    error = refused(app)

    assert error.code == "internal_error"
    assert "ValidationError at " in caplog.text
    assert "secret" not in caplog.text


def streaming(*pieces: str) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def sent(app: Any) -> list[Any]:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(normalize_errors(app, lambda: None)({"type": "http", "path": "/x"}, None, send))
    return messages


def test_streams_of_vllms_app_have_a_header_with_the_id_that_cancels_them(stats: RequestStats) -> None:
    created = 'event: response.created\ndata: {"response":{"id":"resp_1","object":"response"}}\n\n'
    stats.uses_engine, stats.endpoint = True, "/v1/responses"
    start, *body = sent(streaming(created, "data: 2\n\n"))

    assert (b"x-stream-id", b"resp_1") in start["headers"]
    assert (b"x-accel-buffering", b"no") in start["headers"]
    assert [one["body"] for one in body] == [created.encode(), b"data: 2\n\n", b""]
    assert stats.id == "resp_1"


def test_the_engines_request_id_is_recorded_at_once(stats: RequestStats) -> None:
    stats.uses_engine, stats.endpoint = True, "/v1/messages"
    config = SimpleNamespace(speculative_config=None, scheduler_config=SimpleNamespace(stream_interval=1))
    llm = SimpleNamespace(generate=None, vllm_config=config)
    proxy = EngineProxy(llm, SystemClock(), RunningRequests(), lambda _: None)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        proxy.generate("p", SamplingParams(), "chatcmpl-7")
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n"})

    messages = sent(app)

    assert (b"x-stream-id", b"chatcmpl-7") in messages[0]["headers"]
