"""Exceptions as they arise in vLLM, with text that must not reach clients."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError


def a_validation_error() -> ValidationError:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(list[int]).validate_python(["my secret prompt"])
    return raised.value


LEAKS = ("validation error", "ChatCompletionStreamResponse", "pydantic", "secret", "Traceback", "NoneType", "stream.py")


def clean(text: str) -> None:
    assert not [leak for leak in LEAKS if leak in text], text


def raised(error: Exception) -> Exception:
    """The error with a traceback."""
    try:
        raise error
    except Exception as placed:
        return placed
