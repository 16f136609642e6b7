"""Validates vLLM's request models at a bounded cost.

Pydantic validates a list in one call, which holds the interpreter's lock, and continues to its end whatever the number
of wrong items: 12,000 wrong items of a `/v1/responses` request are 2.8 million errors. Here the same core schema is
built again with two changes: every list and object is validated in slices, by a Python function between whose slices
other threads run, and validation ends with the first wrong item.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, SchemaValidator

from gateway.bounded_text import shortened
from gateway.clock import SystemClock
from gateway.errors import ClientError
from gateway.offload import checkpoint

_now = SystemClock().now

# The first slice has this many items, or this many numbers or strings; later slices take a few milliseconds.
_FEW, _SIMPLE, _MANY = 16, 2048, 16_384
_QUICK_S, _SLOW_S = 0.001, 0.004
# One wrong item has an error for each branch of a union; a client gets only the first few.
_ERRORS = 32
# Pydantic's words for an object of one of vLLM's classes.
_NAMED_TYPE = re.compile(r"a (?:valid )?dictionary or (?:an )?(?:instance of \w+|object to extract fields from)")
# Pydantic repeats one mistake for each branch of a union; the first few are enough.
_SHOWN = 3
_LOOKED_AT = 64
_LONGEST_PROBLEM = 600
# Keys of a core schema that contain no schema: values, functions, and data of serializers.
_OPAQUE = frozenset(
    {"metadata", "serialization", "default", "expected", "function", "cls", "json_schema_input_schema", "members"}
)


class BoundedValidator:
    """Validates documents of one type with the result of pydantic's own validator; of its errors, the first ones."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        # Otherwise pydantic would use the classes' prebuilt validators, without the changes.
        self._validator = SchemaValidator(_bounded(TypeAdapter(kind).core_schema), _use_prebuilt=False)

    def __call__(self, document: Any) -> Any:
        """The validated object. Raises ValidationError, and the exceptions of vLLM's own validators."""
        return self._validator.validate_python(document)


def _bounded(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_bounded(one) for one in schema]
    if isinstance(schema, tuple):
        return tuple(_bounded(one) for one in schema)
    if not isinstance(schema, dict):
        return schema
    copy = {name: value if name in _OPAQUE else _bounded(value) for name, value in schema.items()}
    kind = schema.get("type")
    if kind in ("list", "dict", "set", "frozenset", "tuple"):
        copy["fail_fast"] = True
    # A bound on the number of items needs the whole list.
    if kind not in ("list", "dict") or "min_length" in copy or "max_length" in copy:
        return copy
    sliced = {"type": "function-wrap", "function": {"type": "no-info", "function": _validate_in_slices}, "schema": copy}
    if "ref" in copy:
        sliced["ref"] = copy.pop("ref")
    return sliced


def _validate_in_slices(value: Any, validate: Any) -> Any:
    kind = type(value)
    if kind is not list and kind is not dict:
        return validate(value)
    count = len(value)
    if count <= _FEW:
        return validate(value)
    whole: Any = kind()
    items = iter(value.items()) if kind is dict else None
    first = value[0] if items is None else None
    at, size = 0, _FEW if first is None or isinstance(first, list | dict) else _SIMPLE
    while at < count:
        checkpoint()
        part = value[at : at + size] if items is None else dict(islice(items, size))
        began_s = _now()
        try:
            done = validate(part)
        except ValidationError as error:
            if not at or items is not None:
                # The error needs no shift, and a union may have other branches.
                raise
            raise _shift_error(error, at) from None
        took_s = _now() - began_s
        if items is None:
            whole += done
        else:
            whole.update(done)
        at += size
        if took_s < _QUICK_S:
            size = min(2 * size, _MANY)
        elif took_s > _SLOW_S:
            size = max(size // 2, 1)
    return whole


def _shift_error(error: ValidationError, by: int) -> ValidationError:
    """The error of a slice that began at index `by`, with the indices of the whole list."""
    lines = []
    for problem in error.errors(include_url=False)[:_ERRORS]:
        place = problem["loc"]
        if place and isinstance(place[0], int):
            place = (place[0] + by, *place[1:])
        context = {**problem.get("ctx", {}), "text": problem["msg"]}
        kind = PydanticCustomError(problem["type"], "{text}", context)
        lines.append(InitErrorDetails(type=kind, loc=place, input=problem["input"]))
    return ValidationError.from_exception_data(error.title, lines)


def to_client_error(error: ValidationError, *, inside: str = "") -> ClientError:
    """The error for a body that vLLM's request model refuses, with the first wrong field. `inside` is the field whose
    value was validated, if that was not the whole body."""
    problems: dict[str, None] = {}
    param: str | None = None
    for problem in error.errors(include_url=False)[:_LOOKED_AT]:
        inner = problem.get("ctx", {}).get("error")
        field = getattr(inner, "parameter", None) or field_path((inside, *problem["loc"]) if inside else problem["loc"])
        message = _exception_text(inner) if isinstance(inner, Exception) else _problem_text(problem)
        if param is None:
            param = field or None
        problems[shortened(f"{field}: {message}" if field else message, _LONGEST_PROBLEM)] = None
    shown = "; ".join(list(problems)[:_SHOWN])
    more = len(problems) - _SHOWN
    return ClientError(shown + (f"; and {more} more problems" if more > 0 else ""), param=param)


def _problem_text(problem: Any) -> str:
    """Pydantic's own sentence, unless it misses the mistake: the JSON parser turns a whole number past 64 bits into a
    float."""
    value = problem["input"]
    if type(value) is float and value.is_integer() and abs(value) >= 2**63 and problem["type"].startswith("int"):
        return "Input should be a whole number of at most 64 bits"
    return _NAMED_TYPE.sub("an object", str(problem["msg"]).removeprefix("Value error, "))


def field_path(loc: tuple[int | str, ...]) -> str:
    """The path to a field in a client's notation, without pydantic's names of types and validators."""
    parts: list[str] = []
    for part in loc:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif part.isidentifier() and part.islower() and part not in _TYPES:
            parts.append(f".{part}" if parts else part)
    return "".join(parts)


_TYPES = frozenset({"str", "int", "float", "bool", "bytes", "list", "dict", "tuple", "none", "nullable", "union"})


def _exception_text(error: BaseException) -> str:
    """The message of an exception, without the parameter and the value that vLLM appends in brackets."""
    if error.args and isinstance(error.args[0], str):
        return error.args[0]
    return str(error)
