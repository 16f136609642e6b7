from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.engine.bounded_json import BodyLimits
from gateway.engine.vllm.http_app.document_reader import DocumentReader, drop_empty_fields
from gateway.engine.vllm.http_app.untrusted_fields import UntrustedFieldFilter
from gateway.errors import ClientError

READER = DocumentReader(UntrustedFieldFilter(trust=False), BodyLimits(), vocabulary=1000, context=500)
TOOL = {"type": "function", "function": {"name": "f"}}


def read_object(document: Any) -> dict[str, Any]:
    return READER.read_object(json.dumps(document).encode())


def test_an_object_loses_untrusted_and_empty_fields() -> None:
    assert read_object({"prompt": "a", "priority": 1, "user": None, "tools": []}) == {"prompt": "a"}


@pytest.mark.parametrize(
    ("document", "result", "is_changed"),
    [({"a": None, "priority": 1}, {"a": None}, True), ({"a": None}, {"a": None}, False), ([1], [1], False)],
)
def test_any_document_loses_untrusted_fields_only(document: Any, result: Any, is_changed: bool) -> None:
    assert READER.read(json.dumps(document).encode()) == (result, is_changed)


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": [5] * 500},
        {"prompt": [5] * 501, "truncate_prompt_tokens": 10},
        {"prompt": ["a"] * 501},
        {"stop": ["a"] * 256},
        {"stop": "a" * 1000},
        {"stop_token_ids": [5] * 1000},
        {"sampling_params": "x"},
    ],
)
def test_a_document_within_the_limits_is_accepted(document: dict[str, Any]) -> None:
    assert read_object(document) == document


@pytest.mark.parametrize(
    ("document", "message", "param"),
    [
        ([1], "must be a JSON object", None),
        (
            {"prompt": [5] * 501},
            "prompt: This model's maximum context length is 500 tokens; the prompt has 501",
            "prompt",
        ),
        ({"input": [[5], [5] * 501]}, "input: This model's maximum", "input"),
        ({"stop": ["a"] * 257}, r"stop has 257 strings; at most 256 are taken \(server.max_stop_strings\)", "stop"),
        (
            {"sampling_params": {"bad_words": ["a"] * 257}},
            r"sampling_params\.bad_words has 257 strings",
            "sampling_params.bad_words",
        ),
        (
            {"stop_token_ids": [5] * 1001},
            "stop_token_ids has 1001 entries; the model's vocabulary has 1000",
            "stop_token_ids",
        ),
        ({"logit_bias": {str(n): 1 for n in range(1001)}}, "logit_bias has 1001 entries", "logit_bias"),
    ],
)
def test_a_document_past_a_limit_is_a_client_error_with_the_field(document: Any, message: str, param: str) -> None:
    with pytest.raises(ClientError, match=message) as caught:
        read_object(document)

    assert caught.value.param == param


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"a": 1}, {"a": 1}),
        ({"a": None, "b": 0, "c": "", "d": False, "e": [], "f": {}}, {"b": 0, "c": "", "d": False, "e": [], "f": {}}),
        ({"messages": [{"content": None}]}, {"messages": [{"content": None}]}),
        ({"tools": []}, {}),
        ({"tools": None}, {}),
        ({"tool_choice": None}, {}),
        ({"tool_choice": "none"}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": {"type": "none"}}, {}),
        ({"tool_choice": {"type": "auto"}}, {}),
        ({"tools": [], "tool_choice": "none"}, {}),
        ({"tools": None, "tool_choice": "auto"}, {}),
        ({"tools": [], "tool_choice": None}, {}),
        ({"tools": [TOOL], "tool_choice": None}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": "none"}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": "required"}),
        ({"tools": "x", "tool_choice": "required"}, {"tools": "x", "tool_choice": "required"}),
    ],
)
def test_fields_with_the_meaning_of_absence_are_removed(given: dict[str, Any], left: dict[str, Any]) -> None:
    document = dict(given)

    drop_empty_fields(document)

    assert document == left


@pytest.mark.parametrize("tools", [{}, {"tools": []}, {"tools": None}])
@pytest.mark.parametrize(
    "choice", ["required", "any", "f", {"type": "function"}, {"type": "any"}, {}, [], 5, {"type": []}]
)
def test_a_tool_choice_without_tools_is_refused(tools: dict[str, Any], choice: Any) -> None:
    with pytest.raises(ClientError, match="no tools") as refused:
        drop_empty_fields({**tools, "tool_choice": choice})

    assert refused.value.param == "tool_choice"
