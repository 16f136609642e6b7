"""An error as an HTTP response: status, headers and body. Pure; the caller sends them."""

from __future__ import annotations

import orjson

from gateway.errors import MethodNotAllowed, SluiceError, is_anthropic


def error_response(
    error: SluiceError, path: str = "", request_id: str | None = None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers (names in lower case) and body, in OpenAI's shape or, where `path` is Anthropic's, in theirs."""
    body = orjson.dumps(error.anthropic_body(request_id) if is_anthropic(path) else error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in error_headers(error).items()]
    return error.status, headers, body


def error_headers(error: SluiceError) -> dict[str, str]:
    """The headers that belong to an error's response, beside those of its body."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if (error.status in (408, 409, 429) or error.status >= 500) and not error.retryable:
        # The official clients retry these by themselves, unless this header forbids it.
        headers["x-should-retry"] = "false"
    return headers
