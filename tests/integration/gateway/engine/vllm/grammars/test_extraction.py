"""Extraction of grammars, with vLLM's own request models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.engine.vllm.grammars import extraction, grammar_validation
from tests.integration.gateway.engine.vllm.grammars.requests import FORMAT, MESSAGES, SCHEMA, TEXT_FORMAT, chat, tool


@pytest.mark.parametrize(
    ("fields", "field", "constraint"),
    [
        ({"response_format": FORMAT}, "response_format", {"json": SCHEMA}),
        ({"response_format": {"type": "json_object"}}, "response_format", {"json_object": True}),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs", {"regex": "a"}),
        ({"response_format": {"type": "text"}, "structured_outputs": {"choice": ["a"]}}, "structured_outputs", None),
    ],
)
def test_a_request_with_a_grammar_of_its_own(fields: Any, field: str, constraint: Any) -> None:
    named = extraction.named_grammar(chat(**fields))

    assert named is not None
    assert named[0] == field
    assert grammar_validation.extract_constraint(named[1]) == (constraint or {"choice": ["a"]})


def test_a_request_without_a_grammar() -> None:
    assert extraction.named_grammar(chat()) is None
    assert extraction.named_grammar(chat(response_format={"type": "text"})) is None


@pytest.mark.parametrize(
    ("fields", "forced"),
    [
        ({"tools": [tool()]}, False),
        ({"tools": [tool()], "tool_choice": "auto"}, False),
        ({"tools": [tool()], "tool_choice": "none"}, False),
        ({"tools": [tool()], "tool_choice": "required"}, True),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "f"}}}, True),
        ({"tools": [tool(strict=True)]}, True),
        ({"tools": [tool()], "parallel_tool_calls": False}, True),
        ({}, False),
    ],
)
def test_tools_become_a_grammar_where_they_must_be_called_or_are_strict(fields: Any, forced: bool) -> None:
    assert extraction.has_tool_grammars(chat(**fields)) is forced


@pytest.mark.parametrize(
    ("path", "document", "constraint"),
    [
        ("/v1/responses", {"text": {"format": TEXT_FORMAT}}, {"json": SCHEMA}),
        ("/v1/responses", {"structured_outputs": {"regex": "a"}}, {"regex": "a"}),
        (
            "/v1/messages",
            {"model": "m", "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {"json": SCHEMA},
        ),
        ("/v1/chat/completions/batch", {"response_format": FORMAT, "messages": [MESSAGES]}, {"json": SCHEMA}),
        ("/invocations", {"structured_outputs": {"regex": "a"}, "prompt": "x"}, {"regex": "a"}),
        ("/invocations", {"response_format": FORMAT, "messages": MESSAGES}, {"json": SCHEMA}),
        ("/inference/v1/generate", {"sampling_params": {"structured_outputs": {"regex": "a"}}}, {"regex": "a"}),
    ],
)
def test_grammars_are_found_in_bodies_for_vllms_own_app(path: str, document: Any, constraint: Any) -> None:
    assert extraction.may_contain_grammar(json.dumps(document).encode())

    request = extraction.from_document(path, document)
    named = extraction.named_grammar(request)

    assert named is not None
    assert grammar_validation.extract_constraint(named[1]) == constraint


def test_a_body_without_the_fields_of_grammars_is_not_parsed() -> None:
    assert not extraction.may_contain_grammar(b'{"messages": [{"role": "user", "content": "sch\\u00f6n"}]}')
    assert extraction.may_contain_grammar(b'{"respons\\u0065_format": {}}')
