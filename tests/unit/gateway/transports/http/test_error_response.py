"""The one place where an error becomes status, headers and body."""

from __future__ import annotations

import orjson
import pytest

from gateway.errors import (
    Cancelled,
    ClientError,
    InternalError,
    MethodNotAllowed,
    Overloaded,
    SluiceError,
    Unauthorized,
)
from gateway.transports.http.error_response import error_headers, error_response


def test_the_body_is_openais_and_its_length_is_given() -> None:
    error = ClientError("Wrong.", param="n")
    status, headers, body = error_response(error, "/v1/chat/completions", "r1")

    assert (status, orjson.loads(body)) == (400, error.body())
    assert headers == [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]


def test_anthropics_endpoints_have_anthropics_body() -> None:
    error = ClientError("Wrong.")

    assert orjson.loads(error_response(error, "/v1/messages", "r1")[2]) == error.anthropic_body("r1")


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (ClientError("x"), {}),
        (Unauthorized("x"), {"WWW-Authenticate": "Bearer"}),
        (MethodNotAllowed("x", allowed={"GET"}), {"Allow": "GET, HEAD, OPTIONS"}),
        (Overloaded("x", retry_after_s=7), {"Retry-After": "7"}),
        (InternalError("x"), {"x-should-retry": "false"}),
        (Cancelled("x"), {}),
    ],
)
def test_an_error_has_the_headers_of_its_class(error: SluiceError, headers: dict[str, str]) -> None:
    assert error_headers(error) == headers
    assert {name.title(): value for name, value in headers.items()} == {
        name.decode().title(): value.decode() for name, value in error_response(error)[1][2:]
    }
