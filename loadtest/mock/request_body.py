"""Parses and checks a request for tokens. No socket here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from loadtest.mock import faults

# The first token of every chat's prompt: chats have no ids in their bodies.
_CHAT_FIRST_TOKEN = 1


class InvalidRequest(Exception):
    """The request cannot be served: `status`, and a message that names the field and the fix."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestBody:
    chat: bool
    stream: bool
    max_tokens: int | None
    prompt_tokens: int
    first_token: int
    include_usage: bool
    continuous_usage: bool
    token_ids: bool
    resumable: bool
    fault: faults.Fault | None


def parse_request(chat: bool, headers: Mapping[str, str], body: bytes) -> RequestBody:
    """Raises InvalidRequest."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.")
    first_token, prompt_tokens = _messages(document) if chat else _prompt(document)
    options = document.get("stream_options") or {}
    if not isinstance(options, dict):
        raise InvalidRequest("stream_options must be an object.", "stream_options")
    return RequestBody(
        chat=chat,
        stream=document.get("stream") is True,
        max_tokens=_max_tokens(document),
        prompt_tokens=prompt_tokens,
        first_token=first_token,
        include_usage=options.get("include_usage") is True,
        continuous_usage=options.get("continuous_usage_stats") is True,
        token_ids=document.get("return_token_ids") is True,
        resumable="x-stream-resumable" in headers,
        fault=_fault(document, headers),
    )


def _messages(document: dict[str, Any]) -> tuple[int, int]:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message.", "messages")
    texts = [message.get("content") or "" for message in messages if isinstance(message, dict)]
    return _CHAT_FIRST_TOKEN, sum(len(text.split()) for text in texts if isinstance(text, str)) or 1


def _prompt(document: dict[str, Any]) -> tuple[int, int]:
    prompt = document.get("prompt")
    if isinstance(prompt, str) and prompt:
        return _CHAT_FIRST_TOKEN, len(prompt.split())
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return prompt[0], len(prompt)
    raise InvalidRequest("prompt must be a text or a list of token ids, not empty.", "prompt")


def _max_tokens(document: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = document.get(name)
        if value is not None:
            if not isinstance(value, int) or value < 1:
                raise InvalidRequest(f"{name} must be a whole number of at least 1.", name)
            return value
    return None


def _fault(document: dict[str, Any], headers: Mapping[str, str]) -> faults.Fault | None:
    """The header takes precedence. A `user` that names no fault is a user."""
    try:
        if named := headers.get("x-mock-fault"):
            return faults.parse_fault(named)
    except ValueError as error:
        raise InvalidRequest(f"X-Mock-Fault: {error}") from error
    user = document.get("user")
    if not isinstance(user, str) or not (user in set(faults.FaultKind) or user.startswith("{")):
        return None
    try:
        return faults.parse_fault(user)
    except ValueError as error:
        raise InvalidRequest(f"user: {error}", "user") from error
