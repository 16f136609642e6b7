"""Replaces how vLLM's stream generators report an error in a stream that has begun, because vLLM writes the text of any
exception there, and its converters to other protocols parse a chat's error event as a chunk and then report a pydantic
error. Here the error is one of ours, in the protocol's form.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from pydantic import ValidationError
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from gateway import errors
from gateway.engine.base import CURRENT_STATS
from gateway.engine.vllm import error_mapping
from gateway.engine.vllm.http_app.expected_errors import raised_at
from gateway.errors import EngineFailed, InternalError, SluiceError

logger = logging.getLogger(__name__)

_BY_CODE = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SluiceError) and kind is not SluiceError
}
# Exceptions of Python's that mean a defect. vLLM raises plain ValueErrors for wrong requests, but none of these.
_DEFECTS = (ValidationError, json.JSONDecodeError, UnicodeError, TypeError, OverflowError)


def install_stream_errors(state: Any) -> None:
    """Replace the error events of the serving objects in vLLM's app state."""
    # All serving objects that generate inherit the method from one class.
    base: Any = next(kind for kind in OpenAIServingChat.__mro__ if "create_streaming_error_response" in vars(kind))
    base.create_streaming_error_response = _create_streaming_error_response
    if getattr(state, "anthropic_serving_messages", None) is not None:
        state.anthropic_serving_messages.__class__ = _AnthropicMessages
    cohere = getattr(state, "cohere_serving_chat_v2", None)
    if cohere is not None:
        convert = cohere._chat_completion_stream_to_v2
        cohere._chat_completion_stream_to_v2 = lambda chunks, *args, **more: convert(
            _checked_chunks(chunks), *args, **more
        )
    if getattr(state, "openai_serving_responses", None) is not None:
        state.openai_serving_responses._convert_generation_error_to_streaming_response = _raise_engine_failed


def from_exception(error: Exception) -> SluiceError:
    """The error that a client gets for an exception in the middle of its stream."""
    if (known := error_mapping.current_error()) is not None:
        return known
    if isinstance(error, _DEFECTS):
        # The request was accepted, so the client is not at fault.
        logger.error("a request failed inside vLLM: %s%s", type(error).__name__, raised_at(error))
        return InternalError("The server failed to answer this request.")
    return error_mapping.from_exception(error)


def from_event(info: dict[str, Any]) -> SluiceError:
    """The error in an error event of a stream."""
    if (known := error_mapping.current_error()) is not None:
        return known
    kind = _BY_CODE.get(str(info.get("code")))
    if kind is not None:
        error = kind(str(info.get("message")), param=info.get("param"))
        error.retry_after_s = 1 if kind.retryable else None
        return error
    return error_mapping.from_info(int(info.get("code") or 500), str(info.get("message")), info.get("param"))


def _create_streaming_error_response(
    self: Any, message: str | Exception, *_: Any, status_code: int = 400, **more: Any
) -> str:
    """Replaces `create_streaming_error_response`, which makes the document of an error event, because it writes the
    text of any exception."""
    if isinstance(message, Exception):
        error = from_exception(message)
    else:
        error = error_mapping.current_error() or error_mapping.from_info(int(status_code), message, more.get("param"))
    return orjson.dumps(error.body()).decode()


def _raise_engine_failed(error: Exception) -> str:
    """Replaces `_convert_generation_error_to_streaming_response` because its event has a type that vLLM's own models of
    events lack."""
    raise error_mapping.current_error() or EngineFailed("The engine failed this request.", retry_after_s=1) from None


async def _checked_chunks(chunks: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """A chat's chunks, without its error events, which are raised. Chunks are lines, or since vLLM 0.33, for messages,
    objects."""
    async with aclosing(chunks):
        async for item in chunks:
            if isinstance(item, ErrorResponse):
                raise from_event(item.error.model_dump())
            if isinstance(item, str) and item.startswith('data: {"error"'):
                raise from_event(orjson.loads(item.removeprefix("data: "))["error"])
            yield item


class _AnthropicMessages(AnthropicServingMessages):  # type: ignore[misc,unused-ignore]
    """Replaces AnthropicServingMessages because its converter parses an error event as a chunk. Here an error becomes
    an `event: error` of Anthropic's protocol."""

    async def message_stream_converter(self, generator: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
        failure: SluiceError | None = None

        async def chunks() -> AsyncGenerator[Any, None]:
            nonlocal failure
            try:
                async for item in _checked_chunks(generator):
                    yield item
            except SluiceError as error:
                failure = error
                raise

        async for event in super().message_stream_converter(chunks()):
            if event.startswith("event: error"):
                yield _anthropic_event(failure or InternalError("The server failed to answer this request."))
                return
            yield event


def _anthropic_event(error: SluiceError) -> str:
    stats = CURRENT_STATS.get()
    body = error.anthropic_body(None if stats is None else stats.caller.request_id)
    return f"event: error\ndata: {orjson.dumps(body).decode()}\n\n"
