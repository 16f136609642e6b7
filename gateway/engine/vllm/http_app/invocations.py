"""SageMaker's `/invocations`, which accepts the requests of several endpoints and detects the kind of each.

vLLM does that on the event loop, with validators that it keeps in a closure. Here the body is validated before, and
those validators only return the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Validates a body as the first type that accepts it. As in vLLM, types that the model does not support are left
    out."""

    kind = None

    def __init__(self, app: Any, choices: list[Any], validated: ContextVar[list[Any] | None]) -> None:
        """`choices` is vLLM's list: a TypeAdapter, and a function that finds its handler. `validated` holds the result,
        in a list of one, when vLLM's handler validates."""
        request = SimpleNamespace(app=app)
        self._validators = [
            (adapter, BoundedValidator(adapter._type))
            for adapter, (handler, _) in choices
            if handler(request) is not None
        ]
        for adapter, _ in choices:
            _replace_validate_python(adapter, validated)

    @classmethod
    def for_route(cls, route: Any, app: Any, validated: ContextVar[list[Any] | None]) -> InvocationsValidator | None:
        """The validator for `route`; None for another route, or if its closure does not have the expected list."""
        if getattr(route, "path", None) != PATH or not hasattr(route, "endpoint"):
            return None
        for value in _closure_values(route.endpoint):
            if isinstance(value, list) and value and all(map(_is_choice, value)):
                return cls(app, value, validated)
        return None

    def __call__(self, document: Any) -> tuple[Any, Any]:
        """The type's adapter, and the request. Raises ValidationError, or ClientError if the document has the required
        fields of no type."""
        first: ValidationError | None = None
        for adapter, validate in self._validators:
            try:
                return adapter, validate(document)
            except ValidationError as error:
                problems = error.errors(include_url=False, include_input=False)
                is_other_kind = any(one["type"] == "missing" and len(one["loc"]) == 1 for one in problems)
                # A document with all required fields of a type is meant as that type.
                first = first or (None if is_other_kind else error)
        if first is not None:
            raise first
        raise ClientError(
            "The request body is of no kind that this model serves: chats have `messages`, completions `prompt`, "
            "embeddings and others `input`."
        )

    @staticmethod
    def short_fields(document: dict[str, Any]) -> bytes:
        """The short fields of a body, which are all that SageMaker's own handlers read."""
        short = {
            name: value
            for name, value in document.items()
            if not isinstance(value, list | dict) and not (isinstance(value, str) and len(value) > _LONGEST_STRING)
        }
        return orjson.dumps(short)


def _closure_values(function: Any) -> Iterator[Any]:
    """The values in the closures of a function and of those that it wraps."""
    functions, seen = [function], set()
    while functions:
        function = functions.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for cell in getattr(function, "__closure__", None) or ():
            try:
                value = cell.cell_contents
            except ValueError:
                # The cell is empty.
                continue
            yield value
            if callable(value):
                functions.append(value)


def _is_choice(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], TypeAdapter)


def _replace_validate_python(adapter: Any, validated: ContextVar[list[Any] | None]) -> None:
    """Replaces `validate_python` of one of vLLM's adapters because the body has been validated before."""
    validate: Callable[..., Any] = adapter.validate_python

    def validate_python(value: Any, **options: Any) -> Any:
        result = validated.get()
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
