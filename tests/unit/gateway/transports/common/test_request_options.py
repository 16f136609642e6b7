from __future__ import annotations

import pytest

from gateway.domain import RequestOptions
from gateway.errors import ClientError
from gateway.transports.common import request_options


@pytest.mark.parametrize(
    ("headers", "options"),
    [
        ({}, RequestOptions(None, None)),
        ({"x-request-timeout": "30"}, RequestOptions(30.0, None)),
        ({"x-request-timeout": "2.5"}, RequestOptions(2.5, None)),
        ({"x-stream-resumable": "60"}, RequestOptions(None, 60.0)),
        ({"x-stream-resumable": "0"}, RequestOptions(None, 0.0)),
        ({"x-request-timeout": " 1 ", "x-stream-resumable": "1e3"}, RequestOptions(1.0, 1000.0)),
        ({"x-other": "7"}, RequestOptions(None, None)),
    ],
)
def test_request_options_are_seconds(headers: dict[str, str], options: RequestOptions) -> None:
    assert request_options.read(headers) == options


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "-inf", "1s", "30 s"])
@pytest.mark.parametrize(
    ("name", "shown"),
    [(request_options.TIMEOUT, "X-Request-Timeout"), (request_options.RESUMABLE, "X-Stream-Resumable")],
)
def test_a_value_that_is_no_number_of_seconds_is_refused_with_its_header(name: str, shown: str, text: str) -> None:
    with pytest.raises(ClientError, match=f"{shown} must be a number of seconds") as caught:
        request_options.read({name: text})

    assert caught.value.param == shown


@pytest.mark.parametrize("text", ["0", "0.0", "-0"])
def test_a_deadline_of_zero_is_refused(text: str) -> None:
    with pytest.raises(ClientError, match="more than 0") as caught:
        request_options.read({request_options.TIMEOUT: text})

    assert caught.value.param == "X-Request-Timeout"
