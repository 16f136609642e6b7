"""Bounded validation has the result of pydantic's own, and the first of its errors."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from typing_extensions import TypedDict

from gateway.engine.vllm.bounded_validation import BoundedValidator, to_client_error


class Part(TypedDict):
    type: Literal["text"]
    text: str


class Tool(BaseModel):
    name: str
    tags: list[str] = Field(default_factory=list, max_length=2)


class Message(BaseModel):
    role: str
    content: str | list[Part] | None = None
    tool: Tool | None = None


class Ask(BaseModel, extra="allow"):
    messages: list[Message] | str
    ids: list[int] | list[list[int]] | str | None = None
    bias: dict[str, float] | None = None
    tools: list[Tool] = Field(default=[], min_length=1)
    next: Ask | None = None

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, data: Any) -> Any:
        if isinstance(data, dict) and "msgs" in data:
            data["messages"] = data.pop("msgs")
        return data

    @field_validator("ids")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if isinstance(value, list) and value and value[0] == -1:
            raise ValueError("ids must not be negative")
        return value


RIGHT: dict[str, Any] = {
    "short": {"messages": [{"role": "user", "content": "a"}]},
    "long": {"msgs": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 50, "tool": {"name": "f"}}] * 100},
    "a text": {"messages": "hi", "ids": "text", "color": "red"},
    "ids": {"messages": "hi", "ids": list(range(50_000))},
    "lists of ids": {"messages": "hi", "ids": [[1, 2]] * 100},
    "bias": {"messages": "hi", "bias": {str(n): 1 for n in range(1000)}},
    "tools": {"messages": "hi", "tools": [{"name": "f", "tags": ["a", "b"]}] * 40},
    "nested": {"messages": "hi", "next": {"messages": [{"role": "user"}] * 40}},
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_valid_document_becomes_the_same_object_as_with_pydantic(name: str) -> None:
    import copy

    expected = Ask.model_validate(copy.deepcopy(RIGHT[name]))
    made = BoundedValidator(Ask)(copy.deepcopy(RIGHT[name]))

    assert type(made) is Ask
    assert made == expected


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "messages: Field required"),
        ({"messages": [{"role": "user"}] * 500 + [{}] * 5000}, "messages[500].role: Field required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 99 + [{}] * 99}]},
            "messages[0].content[99].type: Field required",
        ),
        (
            {"messages": "x", "bias": {**{str(n): 1 for n in range(99)}, **{str(n): "y" for n in range(99, 9999)}}},
            "bias",
        ),
        ({"messages": "x", "ids": [-1]}, "ids must not be negative"),
        ({"messages": "x", "tools": []}, "at least 1 item"),
        (
            {"messages": "x", "tools": [{"name": "f", "tags": ["a"] * 3}]},
            "tools[0].tags: List should have at most 2 items",
        ),
        ({"messages": "x", "tools": [3]}, "tools[0]: Input should be an object"),
        ({"messages": "x", "next": {}}, "next.messages: Field required"),
    ],
)
def test_an_invalid_document_is_refused_at_its_first_wrong_place(document: Any, words: str) -> None:
    with pytest.raises(ValidationError):
        Ask.model_validate(document)
    with pytest.raises(ValidationError) as caught:
        BoundedValidator(Ask)(document)

    assert caught.value.error_count() < 20
    assert words in to_client_error(caught.value).message


def test_a_whole_number_past_64_bits_has_its_own_message() -> None:
    with pytest.raises(ValidationError) as caught:
        BoundedValidator(list[int])([2.0**70 + 0.0])
    assert to_client_error(caught.value).message == "[0]: Input should be a whole number of at most 64 bits"


def test_an_error_is_short_whatever_the_length_of_names() -> None:
    with pytest.raises(ValidationError) as caught:
        BoundedValidator(dict[str, int])({"k" * 10**6: "x", "l": "y"})
    assert len(to_client_error(caught.value).message) < 3000
