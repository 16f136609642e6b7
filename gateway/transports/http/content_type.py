"""What a request says that its body is. Pure.

As `vllm serve`, bodies must be called JSON where JSON is meant. That is not pedantry: a page of any site may have a
browser send `text/plain` to anybody, but must ask first before it sends `application/json`.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.errors import ClientError

Headers = Iterable[tuple[bytes, bytes]]


def check_json(headers: Headers) -> None:
    """Raises ClientError if the body is not called JSON. 400 and not 415, as `vllm serve` answers."""
    if _type(headers) != b"application/json":
        raise ClientError(
            "The request body must be JSON and be called so: send the header `Content-Type: application/json`.",
            param="Content-Type",
        )


def check_declared(headers: Headers) -> None:
    """Raises ClientError if there is a body that is called nothing, or plain text: some of vLLM's endpoints take
    either for JSON."""
    headers = list(headers)
    has_body = any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0") != b"")
        for name, value in headers
    )
    if has_body and _type(headers) in (b"", b"text/plain"):
        check_json(())


def _type(headers: Headers) -> bytes:
    """The media type, in lower case and without parameters; empty if there is none, or more than one."""
    found = [value for name, value in headers if name == b"content-type"]
    return found[0].partition(b";")[0].strip().lower() if len(found) == 1 else b""


__all__ = ["check_declared", "check_json"]
