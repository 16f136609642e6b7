"""Checks the declared type of a request body. Pure.

As with `vllm serve`, a JSON body must be declared as JSON. That is a protection: a page of any site can make a browser
send `text/plain` to any server, but `application/json` only after a CORS preflight.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.errors import ClientError

Headers = Iterable[tuple[bytes, bytes]]


def check_json(headers: Headers) -> None:
    """Raises ClientError (400, as `vllm serve`, not 415) if the body is not declared as JSON."""
    if _type(headers) != b"application/json":
        raise ClientError(
            "The request body must be JSON and declared as such: send the header `Content-Type: application/json`.",
            param="Content-Type",
        )


def check_declared(headers: Headers) -> None:
    """Raises ClientError for a body without a type or of plain text: some of vLLM's endpoints parse both as JSON."""
    headers = list(headers)
    has_body = any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0") != b"")
        for name, value in headers
    )
    if has_body and _type(headers) in (b"", b"text/plain"):
        check_json(())


def _type(headers: Headers) -> bytes:
    """The media type in lower case without parameters; empty if there is none or more than one."""
    found = [value for name, value in headers if name == b"content-type"]
    return found[0].partition(b";")[0].strip().lower() if len(found) == 1 else b""
