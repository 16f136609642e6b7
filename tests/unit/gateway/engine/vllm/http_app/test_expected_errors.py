from __future__ import annotations

import logging

import pytest

from gateway.engine.vllm.http_app.expected_errors import ExpectedErrorFilter
from gateway.errors import ClientError


def record(error: Exception, level: int = logging.ERROR) -> logging.LogRecord:
    try:
        raise error
    except Exception as raised:
        error = raised
    info = (type(error), error, error.__traceback__)
    return logging.LogRecord("vllm.x", level, "file.py", 1, "Error in %s: my secret", ("it",), info, "create")


class VLLMClientError(Exception):
    """Has the name of one of vLLM's."""


class TooLong(VLLMClientError):
    """One of its kind."""


class Aborted(Exception):
    """Has the name of ours."""


@pytest.mark.parametrize("error", [TooLong("my secret"), Aborted(), ClientError("x")])
def test_errors_that_clients_cause_are_not_logged(error: Exception) -> None:
    assert not ExpectedErrorFilter().filter(record(error))


@pytest.mark.parametrize(
    "error", [ValueError("my secret"), TypeError("my secret"), UnicodeDecodeError("utf-8", b"secret", 0, 1, "x")]
)
def test_an_ambiguous_error_is_logged_with_its_place_only(error: Exception) -> None:
    one = record(error)

    assert ExpectedErrorFilter().filter(one)
    assert one.exc_info is None
    assert one.getMessage().startswith(f"create: {type(error).__name__} at ")
    assert "secret" not in one.getMessage()


def test_defects_and_plain_lines_are_logged_as_they_are() -> None:
    one = record(RuntimeError("x"))
    plain = logging.LogRecord("vllm.x", logging.ERROR, "file.py", 1, "hello", (), None)

    assert ExpectedErrorFilter().filter(one)
    assert one.exc_info is not None
    assert ExpectedErrorFilter().filter(plain)
