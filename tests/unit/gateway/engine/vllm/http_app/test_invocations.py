from __future__ import annotations

import json
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from gateway.engine.vllm.http_app.invocations import InvocationsValidator
from gateway.errors import ClientError


class Chat(BaseModel):
    messages: list[str]
    model: str | None = None


class Completion(BaseModel):
    prompt: str
    n: int = 1
    model: str | None = None


class Embedding(BaseModel):
    input: str


VALIDATED: ContextVar[list[Any] | None] = ContextVar("validated", default=None)


def make_route(path: str = "/invocations") -> Any:
    """As vLLM's route: a wrapped handler with the list of types in its closure."""
    choices = [
        (TypeAdapter(Chat), (lambda request: request.app, None)),
        (TypeAdapter(Completion), (lambda request: request.app, None)),
        (TypeAdapter(Embedding), (lambda _: None, None)),
    ]

    def handler(body: Any) -> Any:
        for adapter, _ in choices:
            try:
                return adapter.validate_python(body)
            except ValidationError:
                continue
        return None

    def endpoint(body: Any) -> Any:
        return handler(body)

    return SimpleNamespace(path=path, endpoint=endpoint)


def validator(route: Any) -> InvocationsValidator:
    found = InvocationsValidator.for_route(route, object(), VALIDATED)
    assert found is not None
    return found


@pytest.mark.parametrize("document", [{"messages": ["a"]}, {"prompt": "a", "n": 2}])
def test_a_body_becomes_the_first_type_that_accepts_it_and_the_handler_gets_it(document: dict[str, Any]) -> None:
    route = make_route()
    adapter, request = validator(route)(document)
    token = VALIDATED.set([(adapter, request)])
    try:
        assert route.endpoint({"model": "adapter"}) is request
    finally:
        VALIDATED.reset(token)

    assert isinstance(request, Chat if "messages" in document else Completion)
    # SageMaker's library has written the adapter into the body.
    assert request.model == "adapter"


def test_without_a_result_vllms_own_validation_runs() -> None:
    route = make_route()
    validator(route)

    assert route.endpoint({"prompt": "a"}) == Completion(prompt="a")


def test_the_error_is_of_the_type_whose_required_fields_are_there() -> None:
    with pytest.raises(ValidationError) as wrong:
        validator(make_route())({"prompt": "a", "n": "x"})

    assert wrong.value.errors()[0]["loc"] == ("n",)


def test_a_body_of_no_supported_type_is_a_client_error() -> None:
    with pytest.raises(ClientError, match="of no kind that this model serves"):
        validator(make_route())({"input": "a"})


@pytest.mark.parametrize(
    "route", [make_route("/v1/models"), SimpleNamespace(path="/invocations", endpoint=print), SimpleNamespace()]
)
def test_other_routes_have_no_such_validator(route: Any) -> None:
    assert InvocationsValidator.for_route(route, object(), VALIDATED) is None


def test_only_short_fields_are_left_for_sagemakers_handlers() -> None:
    document = {"model": "m", "stream": True, "messages": ["a"], "prompt": "x" * 2000, "options": {}}

    assert json.loads(InvocationsValidator.short_fields(document)) == {"model": "m", "stream": True}
