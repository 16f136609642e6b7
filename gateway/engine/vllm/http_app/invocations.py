"""SageMaker's `/invocations`, which takes the requests of several endpoints and finds out which one it has.

vLLM does that on the event loop, with validators that it keeps in a closure. Here the body is validated before, and
those validators only hand out the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from gateway.engine.vllm.bounded_validation import BoundedValidator
from gateway.errors import ClientError

PATH = "/invocations"
_LONGEST_STRING = 1024


class InvocationsValidator:
    """Validates a body as the first type that fits it. As vLLM does, it leaves out what the model cannot do."""

    kind = None

    def __init__(self, app: Any, choices: list[Any], taken: ContextVar[list[Any] | None]) -> None:
        """`choices` is vLLM's list: a TypeAdapter, and how to find its handler. `taken` is where the result will be
        found, alone in a list, when vLLM asks."""
        request = SimpleNamespace(app=app)
        self._validators = [
            (adapter, BoundedValidator(adapter._type))
            for adapter, (handler, _) in choices
            if handler(request) is not None
        ]
        for adapter, _ in choices:
            _give_way(adapter, taken)

    @classmethod
    def for_route(cls, route: Any, app: Any, taken: ContextVar[list[Any] | None]) -> InvocationsValidator | None:
        """For that route; None if it is another one, or not built as we know it."""
        if getattr(route, "path", None) != PATH or not hasattr(route, "endpoint"):
            return None
        for value in _enclosed(route.endpoint):
            if isinstance(value, list) and value and all(_is_choice(one) for one in value):
                return cls(app, value, taken)
        return None

    def __call__(self, document: Any) -> tuple[Any, Any]:
        """The type's adapter, and the request."""
        found: ValidationError | None = None
        for adapter, validate in self._validators:
            try:
                return adapter, validate(document)
            except ValidationError as error:
                problems = error.errors(include_url=False, include_input=False)
                missing = any(one["type"] == "missing" and len(one["loc"]) == 1 for one in problems)
                # A type whose required fields are there is the one that was meant.
                found = found or (None if missing else error)
        if found is not None:
            raise found
        raise ClientError(
            "The request body is of no kind that this model serves: chats have `messages`, completions `prompt`, "
            "embeddings and others `input`."
        )

    @staticmethod
    def short_fields(document: dict[str, Any]) -> bytes:
        """What SageMaker's own handlers look at in a body: its short fields."""
        kept = {
            name: value
            for name, value in document.items()
            if not isinstance(value, list | dict) and not (isinstance(value, str) and len(value) > _LONGEST_STRING)
        }
        return orjson.dumps(kept)


def _enclosed(function: Any) -> Iterator[Any]:
    """What a function and those that it wraps have in their closures."""
    functions, seen = [function], set()
    while functions:
        function = functions.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for cell in getattr(function, "__closure__", None) or ():
            with suppress(ValueError):
                value = cell.cell_contents
                yield value
                if callable(value):
                    functions.append(value)


def _is_choice(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], TypeAdapter)


def _give_way(adapter: Any, taken: ContextVar[list[Any] | None]) -> None:
    validate: Callable[..., Any] = adapter.validate_python

    def validate_python(value: Any, **options: Any) -> Any:
        result = taken.get()
        if result is None:
            return validate(value, **options)
        found, request = result[0]
        if found is not adapter:
            raise ValidationError.from_exception_data("another kind of request", [])
        # SageMaker's header may name the adapter.
        if isinstance(value, dict) and value.get("model") is not None:
            request.model = value["model"]
        return request

    adapter.validate_python = validate_python


__all__ = ["PATH", "InvocationsValidator"]
