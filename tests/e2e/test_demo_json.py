"""The demo model under a grammar: JSON, and calls that a client has asked for, come to an end by themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.server import Json, Server

QUESTIONS = ("What is Sluice? Answer in JSON.", "Count to ten", "How do I resume a stream?", "asdf qwer zxcv")
ANSWER = {"type": "object", "properties": {"answer": {"type": "string"}, "sure": {"type": "boolean"}}}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}


def schema(properties: Json) -> Json:
    strict = {**properties, "required": list(properties["properties"]), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": strict}}


@pytest.mark.parametrize(
    "wanted", [{"type": "json_object"}, schema(ANSWER), schema(PERSON)], ids=["object", "answer", "person"]
)
def test_an_answer_in_json_ends(server: Server, wanted: Json) -> None:
    """Without a limit on its tokens, and with the sampling that a client gets who names none."""
    for question in QUESTIONS:
        answer = server.ask(
            messages=[{"role": "user", "content": question}], response_format=wanted, temperature=None, seed=1
        )

        assert answer["choices"][0]["finish_reason"] == "stop", answer
        assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_was_asked_for_ends(server: Server, choice: Any) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": city}} for name in ("get_weather", "get_time")
    ]
    for question in ("What is the weather in Paris?", "What time is it in Oslo?"):
        answer = server.ask(messages=[{"role": "user", "content": question}], tools=tools, tool_choice=choice)
        (call,) = answer["choices"][0]["message"]["tool_calls"]

        assert answer["choices"][0]["finish_reason"] in ("stop", "tool_calls"), answer
        assert list(json.loads(call["function"]["arguments"])) == ["city"]
