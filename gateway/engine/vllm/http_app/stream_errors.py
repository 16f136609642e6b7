"""Errors that vLLM's stream generators write into streams that have begun: in our words, and in the protocol's form.

vLLM puts the text of whatever was raised there, and its converters to other protocols take a chat's error event for a
chunk and report that pydantic does not like it.
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

from gateway import errors
from gateway.engine.base import CURRENT_STATS
from gateway.engine.vllm import error_mapping
from gateway.engine.vllm.compat.imports import find
from gateway.engine.vllm.http_app.expected_errors import raised_at
from gateway.errors import EngineFailed, InternalError, SluiceError

logger = logging.getLogger(__name__)

_BY_CODE = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SluiceError) and kind is not SluiceError
}
# Python's own words for a defect; vLLM raises plain ValueErrors for clients, too, but no such.
_DEFECTS = (ValidationError, json.JSONDecodeError, UnicodeError, TypeError, OverflowError)


def install_stream_errors(state: Any) -> None:
    """Have the serving objects in vLLM's app state write errors in our words."""
    # All serving objects that generate have it from one class.
    base: Any = next(kind for kind in OpenAIServingChat.__mro__ if "create_streaming_error_response" in vars(kind))
    base.create_streaming_error_response = _written
    if getattr(state, "anthropic_serving_messages", None) is not None:
        state.anthropic_serving_messages.__class__ = _Messages
    cohere = getattr(state, "cohere_serving_chat_v2", None)
    if cohere is not None:
        cohere._chat_completion_stream_to_v2 = _failing(cohere._chat_completion_stream_to_v2)
    if getattr(state, "openai_serving_responses", None) is not None:
        state.openai_serving_responses._convert_generation_error_to_streaming_response = _raise


def from_exception(error: Exception) -> SluiceError:
    """What a client is told of an exception in the middle of its stream."""
    known = error_mapping.current_error()
    if known is not None:
        return known
    if isinstance(error, _DEFECTS):
        # The request was accepted: this is no client's fault.
        logger.error("a request failed inside vLLM: %s%s", type(error).__name__, raised_at(error))
        return InternalError("The server failed to answer this request.")
    return error_mapping.from_exception(error)


def from_event(info: dict[str, Any]) -> SluiceError:
    """The error that an event of a stream tells of."""
    known = error_mapping.current_error()
    if known is not None:
        return known
    kind = _BY_CODE.get(str(info.get("code")))
    if kind is not None:
        error = kind(str(info.get("message")), param=info.get("param"))
        error.retry_after_s = 1 if kind.retryable else None
        return error
    return error_mapping.from_info(int(info.get("code") or 500), str(info.get("message")), info.get("param"))


def _written(self: Any, message: str | Exception, *_: Any, status_code: int = 400, **more: Any) -> str:
    """Stands where vLLM's serving objects make the document of an error event."""
    if isinstance(message, Exception):
        error = from_exception(message)
    else:
        error = error_mapping.current_error() or error_mapping.from_info(int(status_code), message, more.get("param"))
    return orjson.dumps(error.body()).decode()


def _raise(error: Exception) -> str:
    """vLLM would make an event of it that its own types do not know."""
    raise error_mapping.current_error() or EngineFailed("The engine failed this request.", retry_after_s=1) from None


async def _without_errors(chunks: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """A chat's chunks: lines, and for messages objects since vLLM 0.33. Raises the error that one of them is."""
    response = find("ErrorResponse")
    async with aclosing(chunks):
        async for item in chunks:
            if isinstance(item, response):
                raise from_event(item.error.model_dump())
            if isinstance(item, str) and item.startswith('data: {"error"'):
                raise from_event(orjson.loads(item.removeprefix("data: "))["error"])
            yield item


def _failing(convert: Any) -> Any:
    """A converter of vLLM's that writes the text of what is raised in its chunks."""

    def converted(chunks: AsyncGenerator[str, None], *args: Any, **more: Any) -> Any:
        return convert(_without_errors(chunks), *args, **more)

    return converted


class _Messages(AnthropicServingMessages):  # type: ignore[misc,unused-ignore]
    """Anthropic's messages; an error in the stream is an event of theirs."""

    async def message_stream_converter(self, generator: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
        failure: SluiceError | None = None

        async def chunks() -> AsyncGenerator[Any, None]:
            nonlocal failure
            try:
                async for item in _without_errors(generator):
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


__all__ = ["from_event", "from_exception", "install_stream_errors"]
